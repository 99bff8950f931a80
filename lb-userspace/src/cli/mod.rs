//! The command line: what a person types, and what `lb` prints for it.
//!
//! Reading ([`lb_datapath`]) and rendering ([`view`](crate::view)) are separate: everything in `view` is a pure function.

pub mod cleanup;
pub mod explain;
pub mod get;
mod pin_args;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lb_common::layout::LAYOUT_VERSION;

use crate::config::{self, AgentArgs, Machine, ReadArguments, SettingsError};
use crate::probe::packet::PacketError;
pub use cleanup::CleanupError;
pub use explain::ExplainError;
pub use get::ReadError;

/// Sluice: Kubernetes Service load balancing in eBPF, in place of kube-proxy
///
/// `lb agent` runs on every node; it keeps the kernel's maps equal to the Services of the cluster. The other commands
/// read the same maps: they work on a node, as root, and need neither the API server nor a running agent.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lb agent                                      In a cluster, as a DaemonSet does
  lb agent --manifests ./manifests              Without a cluster: Services from YAML files
  lb agent --config sluice.yaml --print-config  What would be in effect, and why
  lb get services -n shop                       The Service addresses of one namespace
  lb get flows web -o wide                      Open connections of the Service `web`
  lb explain tcp 192.0.2.7 10.10.0.11:30080     What becomes of that packet, and why
  lb cleanup --dry-run                          What would be removed from this node
  lb cleanup --kube-proxy --dry-run             What kube-proxy left on it";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node
    Agent(Box<AgentArgs>),
    /// Show what is in the kernel's maps
    #[command(subcommand, after_help = GET_EXAMPLES)]
    Get(get::Get),
    /// Say what becomes of a packet, and why: Service, endpoint, verdict, source
    Explain(Box<explain::ExplainArgs>),
    /// Remove everything that Sluice ever put on this node: programs, maps and filters, of any version
    ///
    /// Open connections through Services break. An agent that runs must be ended first.
    ///
    /// On a node that ran kube-proxy, --kube-proxy removes what that left.
    Cleanup(cleanup::CleanupArgs),
    /// Print the version
    Version,
}

const GET_EXAMPLES: &str = "\
Examples:
  lb get services                       All Service addresses, with the number of endpoints of each
  lb get backends -n shop web           The endpoints of one Service
  lb get flows -o json                  Connections that are translated packet by packet, for programs";

/// A command line that cannot be followed. Ends `lb` with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `lb explain`: no such packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// What is to be done.
#[derive(Debug)]
pub enum Invocation {
    Run(Command),
    /// `lb agent --print-config`: the text to print.
    PrintConfig(String),
}

/// Understands a command line (the first of `args` is the program), the environment and the configuration file.
pub fn parse(args: impl IntoIterator<Item = OsString>, machine: &Machine) -> Result<Invocation, UsageError> {
    let ReadArguments { command, matches, file } = config::read_arguments(command(machine), args)?;
    if let Some(agent) = matches.subcommand_matches("agent").filter(|agent| agent.get_flag("print_config")) {
        let schema = config::agent_of(&command);
        return Ok(Invocation::PrintConfig(config::effective_yaml(&schema, agent, file.as_ref())));
    }
    match Cli::from_arg_matches(&matches).map_err(SettingsError::from)?.command {
        Command::Explain(args) => {
            args.packet()?;
            Ok(Invocation::Run(Command::Explain(args)))
        }
        Command::Agent(mut agent) => {
            agent.check()?;
            if let Some(matches) = matches.subcommand_matches("agent") {
                agent.effective = config::effective_json(&config::agent_of(&command), matches);
            }
            Ok(Invocation::Run(Command::Agent(agent)))
        }
        command => Ok(Invocation::Run(command)),
    }
}

fn command(machine: &Machine) -> clap::Command {
    config::with_machine(Cli::command(), machine)
}

/// What `lb version` prints.
pub fn version() -> String {
    format!("lb {} (map layout {LAYOUT_VERSION})\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::node::devices::AttachMode;
    use crate::testing::assert_golden;

    fn machine() -> Machine {
        Machine { host_name: "worker-1".into(), cgroup_root: Some("/sys/fs/cgroup".into()) }
    }

    fn run(args: &[&str]) -> Result<Invocation, UsageError> {
        parse(args.iter().map(OsString::from), &machine())
    }

    fn settings(args: &[&str]) -> Config {
        match run(args) {
            Ok(Invocation::Run(Command::Agent(agent))) => agent.settings,
            other => panic!("not an agent: {other:?}"),
        }
    }

    fn printed(args: &[&str]) -> String {
        match run(args) {
            Ok(Invocation::PrintConfig(text)) => text,
            other => panic!("no configuration: {other:?}"),
        }
    }

    fn usage_error(args: &[&str]) -> String {
        run(args).unwrap_err().to_string()
    }

    fn help(args: &[&str]) -> String {
        // No terminal, no environment: the same text everywhere.
        let mut command = command(&machine()).term_width(100);
        if args.len() > 1 {
            command = args[1..].iter().fold(command, |command, name| {
                let mut sub = command.find_subcommand(name).cloned().unwrap_or_default();
                sub.set_bin_name(format!("lb {name}"));
                sub.term_width(100)
            });
        }
        command.mut_args(|arg| arg.hide_env_values(true)).render_long_help().to_string()
    }

    #[test]
    fn the_command_is_well_formed() {
        command(&machine()).debug_assert();
    }

    #[test]
    fn help_of_lb() {
        assert_golden("help.txt", &help(&["lb"]));
    }

    #[test]
    fn help_of_lb_agent() {
        assert_golden("help-agent.txt", &help(&["lb", "agent"]));
    }

    #[test]
    fn help_of_lb_cleanup() {
        assert_golden("help-cleanup.txt", &help(&["lb", "cleanup"]));
    }

    #[test]
    fn help_of_lb_explain() {
        assert_golden("help-explain.txt", &help(&["lb", "explain"]));
    }

    #[test]
    fn a_packet_that_cannot_be_is_a_wrong_command_line() {
        assert!(
            usage_error(&["lb", "explain", "tcp", "10.1.2.3", "10.96.0.10"])
                .contains("add the Service's port")
        );
        assert!(
            usage_error(&["lb", "explain", "tcp", "10.1.2.3", "web:80"])
                .contains("is not an address and port")
        );
        assert!(usage_error(&["lb", "explain", "tcq", "10.1.2.3", "10.96.0.10:80"]).contains("'tcp'"));
        assert!(
            usage_error(&["lb", "explain", "tcp", "10.1.2.3", "10.96.0.10:80", "--node=a"])
                .contains("--manifests")
        );
    }

    #[test]
    fn defaults() {
        let settings = settings(&["lb", "agent"]);
        assert_eq!(settings.node_name, "worker-1");
        assert_eq!(settings.cgroup, Some("/sys/fs/cgroup".into()));
        assert_eq!(settings.health_bind, "0.0.0.0:10256".parse().unwrap());
        assert_eq!(settings.cluster_cidr, config::Cidrs::default());
        assert!(!settings.wait_lock);
    }

    #[test]
    fn the_effective_configuration_is_printed() {
        assert_golden(
            "print-config.yaml",
            &printed(&["lb", "agent", "--print-config", "--devices=eth*,ens3"]),
        );
    }

    #[test]
    fn a_printed_configuration_says_the_same_when_it_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.yaml");
        let args = [
            "lb",
            "agent",
            "--node-name=0x10",
            "--manifests=/etc/a b",
            "--devices=*,eth?",
            "--cluster-cidr=10.0.0.0/8,fd00::/8",
            "--health-bind=[::]:10256",
            "--log-level=info,lb_plan=debug",
            "--wait-lock",
            "--mode=tc",
            "--max-flows=16",
        ];
        std::fs::write(&path, printed(&[&args[..], &["--print-config"]].concat())).unwrap();
        let config = format!("--config={}", path.display());
        assert_eq!(settings(&["lb", "agent", &config]), settings(&args));
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_overrides_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.yaml");
        std::fs::write(&path, "mode: xdp\nnodeName: from-file\nmaxSlots: 4096\n").unwrap();
        let config = format!("--config={}", path.display());
        let settings = settings(&["lb", "agent", &config, "--mode=tc"]);
        assert_eq!(settings.mode, AttachMode::Tc);
        assert_eq!(settings.node_name, "from-file");
        assert_eq!(settings.maps.max_slots, 4096);

        let text = printed(&["lb", "agent", &config, "--mode=tc", "--print-config"]);
        assert!(text.contains("\nmode: tc  # flag --mode\n"), "{text}");
        assert!(text.contains(&format!("\nnodeName: from-file  # {}:2\n", path.display())), "{text}");
        assert!(text.contains("\nbpffs: /sys/fs/bpf  # default\n"), "{text}");
    }

    #[test]
    fn a_running_agent_knows_its_settings_by_their_keys() {
        let Ok(Invocation::Run(Command::Agent(agent))) =
            run(&["lb", "agent", "--mode=tc", "--devices=eth*,ens3", "--wait-lock"])
        else {
            panic!("not an agent");
        };
        let effective = |key: &str| agent.effective[key].clone();
        assert_eq!(effective("mode"), "tc");
        assert_eq!(effective("nodeName"), "worker-1");
        assert_eq!(effective("devices"), serde_json::json!(["eth*", "ens3"]));
        assert_eq!((effective("waitLock"), effective("manifests")), (true.into(), serde_json::Value::Null));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        assert_eq!(
            usage_error(&["lb", "agent", "--config", "/nonexistent/sluice.yaml"]),
            "cannot read the configuration file /nonexistent/sluice.yaml"
        );
    }

    #[test]
    fn a_wrong_flag_names_the_nearest_right_one() {
        assert!(usage_error(&["lb", "agent", "--node-nam", "x"]).contains("'--node-name'"));
        assert!(usage_error(&["lb", "get", "servces"]).contains("'services'"));
    }

    #[test]
    fn manifests_and_kubeconfig_exclude_each_other() {
        let error = usage_error(&["lb", "agent", "--manifests=a", "--kubeconfig=b"]);
        assert!(error.contains("cannot be used with"), "{error}");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.yaml");
        std::fs::write(&path, "kubeconfig: b\n").unwrap();
        let config = format!("--config={}", path.display());
        assert!(usage_error(&["lb", "agent", &config, "--manifests=a"]).contains("both set"));
    }
}
