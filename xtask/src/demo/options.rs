//! Options of the demo, which `cargo xtask demo` and the demo program both parse.

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave everything running, and print commands to look around
    #[arg(long)]
    pub keep: bool,
    /// Only remove what an earlier --keep left running
    #[arg(long, conflicts_with = "keep")]
    pub remove: bool,
    /// Show Ingress: `lb ingress` behind NodePorts, with host and path rules, TLS and a WebSocket
    #[arg(long, conflicts_with = "keep")]
    pub ingress: bool,
    /// Programs that translate packets
    #[arg(long, value_enum, default_value = "tc")]
    pub mode: Mode,
    /// Connect pods of different nodes through VXLAN, as an overlay CNI does
    #[arg(long)]
    pub overlay: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Tc,
    Xdp,
}
