//! The command line of `lb`.
//!
//! Reading maps ([`lb_datapath`]) and rendering them ([`view`](crate::view)) are separate. All
//! functions in `view` are pure.

pub mod cleanup;
pub mod doctor;
pub mod drain;
pub mod explain;
pub mod generate;
pub mod get;
mod host_root;
mod http_client;
pub mod log_level;
pub mod migrate;
pub mod migration;
pub mod monitor;
mod objects;
mod pin_args;
mod terminal;
pub mod top;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lb_common::layout::LAYOUT_VERSION;

use crate::config::{self, AgentArgs, Machine, ReadArguments, SettingsError};
use crate::ingress::IngressArgs;
pub use cleanup::CleanupError;
pub use drain::DrainError;
pub use explain::ExplainError;
use explain::ExplainUsageError;
use generate::NoSuchCommand;
pub use get::ReadError;
pub use monitor::MonitorError;
pub use top::TopError;

/// Sluice: Kubernetes Service load balancing with eBPF, a replacement for kube-proxy
///
/// `lb agent` runs on every node. It loads eBPF programs, and keeps their maps in sync with the
/// Services and EndpointSlices of the cluster. The programs stay loaded when the agent ends.
///
/// The other commands inspect or remove these programs and maps. Run them as root on a node. They
/// need neither the API server nor a running agent.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lb agent                                      Serve the Services of the cluster, in a pod
  lb agent --manifests ./manifests              Serve Services from YAML files, without a cluster
  lb agent --config sluice.yaml --print-config  Print all settings and where each comes from
  lb ingress --manifests ./manifests            Serve Ingresses from YAML files over HTTP
  lb get services -n shop                       List the Service addresses of the namespace shop
  lb get flows web -o wide                      List the connections of the Service web
  lb explain tcp 192.0.2.7 10.10.0.11:30080     Explain what happens to this packet
  lb monitor -n shop --kind refused,dropped     Print what goes wrong in the namespace shop
  lb top                                        Show the Services with the most new connections
  lb doctor                                     Check this node and the running agent
  lb drain --node worker-7                      Move new connections away from a node
  lb preflight --manifests ./ingresses          Report what a move from ingress-nginx changes
  lb cleanup --dry-run                          List what `lb cleanup` would remove
  lb cleanup --kube-proxy --dry-run             List what kube-proxy left behind
  lb migrate kube-proxy config.conf             Print the settings that are equivalent";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: load the programs and keep their maps in sync with the cluster
    Agent(Box<AgentArgs>),
    /// Serve Ingresses: HTTP and HTTPS for the hosts and paths of the cluster
    ///
    /// It needs no privileges but those of its ports, and no running agent. Routes, endpoints and
    /// certificates change while it runs. /readyz reports that it serves.
    #[command(after_help = INGRESS_EXAMPLES)]
    Ingress(Box<IngressArgs>),
    /// List Services, backends, flows or affinities from the kernel's maps
    #[command(subcommand, after_help = GET_EXAMPLES)]
    Get(get::Get),
    /// Explain what happens to a packet: its Service, endpoint, verdict and source address; or to
    /// an HTTP request
    Explain(Box<explain::ExplainArgs>),
    /// Print connections that are opened, closed, refused and dropped, as they happen
    Monitor(Box<monitor::MonitorArgs>),
    /// Show Services by their connections, with rates, endpoints and reasons, in the terminal
    Top(top::TopArgs),
    /// Check this node: kernel, file systems, programs, maps, other proxies
    ///
    /// It prints one finding for each check: ok, note, warning or error, with what was seen and
    /// what to do. It changes nothing, and needs no running agent. Without root it reports what it
    /// could not check. It exits with status 1 if a finding is an error.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Move new connections away from the endpoints of a node
    ///
    /// It cordons the Node and annotates it with lb.sluice.dev/drain. On every node, new
    /// connections go to endpoints on other nodes then. Open connections stay, or are reset after
    /// a time limit.
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain(drain::DrainArgs),
    /// Report what a move from ingress-nginx changes: for each Ingress, what is taken over, what
    /// differs, and what is missing
    ///
    /// It reads Ingresses, IngressClasses, Services and Secrets of type kubernetes.io/tls from a
    /// cluster or a folder, and changes nothing. It exits with status 1 if something would break.
    #[command(after_help = PREFLIGHT_EXAMPLES)]
    Preflight(migration::PreflightArgs),
    /// Remove all programs, maps and filters of Sluice from this node
    ///
    /// It removes what agents of any version have left in the BPF file system and on network
    /// devices. Stop the agent first. Open connections to Services break.
    ///
    /// With --kube-proxy it removes the leftovers of kube-proxy instead.
    Cleanup(cleanup::CleanupArgs),
    /// Change the log level of the running agent
    ///
    /// It needs the network namespace of the agent, and its user. Run it in the pod of the agent.
    LogLevel(log_level::LogLevelArgs),
    /// Print the settings that are equivalent to the configuration of another proxy
    #[command(subcommand, after_help = MIGRATE_EXAMPLES)]
    Migrate(migrate::Migrate),
    /// Print the script that completes the commands of `lb` in a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(generate::CompletionsArgs),
    /// Print a manual page
    #[command(after_help = MAN_EXAMPLES)]
    Man(generate::ManArgs),
    /// Print the version
    Version,
}

const DRAIN_EXAMPLES: &str = "\
Examples:
  lb drain --node worker-7                      Drain a node of the cluster
  lb drain --node worker-7 --timeout 10m        The same, and reset what is open after ten minutes
  lb drain --node worker-7 --off                End the drain
  lb drain --node worker-7 --manifests ./web    Print the Node to write, for agents without a cluster";

const PREFLIGHT_EXAMPLES: &str = "\
Examples:
  lb preflight --kubeconfig admin.conf          Check the Ingresses of a cluster
  lb preflight --manifests ./ingresses          Check the Ingresses of a folder
  lb preflight -o markdown > move.md            Write the report for a ticket";

const MIGRATE_EXAMPLES: &str = "\
Examples:
  kubectl -n kube-system get configmap kube-proxy -o yaml | lb migrate kube-proxy -
  lb migrate kube-proxy /var/lib/kube-proxy/config.conf > sluice.yaml";

const INGRESS_EXAMPLES: &str = "\
Examples:
  lb ingress                                                Serve the Ingresses of the cluster
  lb ingress --manifests ./web --http :8080 --https :8443   Serve YAML files, without a cluster
  lb ingress --trusted-proxies 10.0.0.0/8                   Serve behind a load balancer";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  lb completions bash > /usr/share/bash-completion/completions/lb
  lb completions zsh > /usr/local/share/zsh/site-functions/_lb
  lb completions fish > /etc/fish/completions/lb.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  lb man agent | man -l -                                   Read the page of `lb agent`
  lb man > /usr/local/share/man/man1/lb.1                   Install the page of `lb`
  lb man get flows > /usr/local/share/man/man1/lb-get-flows.1";

const GET_EXAMPLES: &str = "\
Examples:
  lb get services                       List all Service addresses with their number of endpoints
  lb get backends -n shop web           List the endpoints of the Service web in the namespace shop
  lb get flows -o json                  Print the flow table as JSON";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  lb doctor                                     Check this node
  lb doctor --kubeconfig admin.conf             Check also that the API server is reachable
  lb doctor --host-root /host                   Check the node from a container with its root folder
  lb doctor -o json                             Print the findings as JSON";

/// A command line or configuration file that is not valid. `lb` exits with code 2.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The arguments of `lb explain`.
    #[error(transparent)]
    Explain(#[from] ExplainUsageError),
    /// The argument of `lb man`.
    #[error(transparent)]
    Page(#[from] NoSuchCommand),
}

/// The request of a command line.
#[derive(Debug)]
pub enum Invocation {
    Run(Command),
    /// `lb agent --print-config`: the text to print.
    PrintConfig(String),
}

/// Parses the command line, the environment and the configuration file. `args` starts with the name
/// of the program.
pub fn parse(args: impl IntoIterator<Item = OsString>, machine: &Machine) -> Result<Invocation, UsageError> {
    let ReadArguments { command, matches, file, ignored } = config::read_arguments(command(machine), args)?;
    if let Some(agent) = matches.subcommand_matches("agent").filter(|agent| agent.get_flag("print_config")) {
        let schema = config::agent_of(&command);
        return Ok(Invocation::PrintConfig(config::effective_yaml(&schema, agent, file.as_ref())));
    }
    match Cli::from_arg_matches(&matches).map_err(SettingsError::from)?.command {
        Command::Explain(args) => {
            args.check()?;
            Ok(Invocation::Run(Command::Explain(args)))
        }
        Command::Man(args) => {
            args.find(command)?;
            Ok(Invocation::Run(Command::Man(args)))
        }
        Command::Agent(mut agent) => {
            agent.check()?;
            agent.ignored = ignored;
            if let Some(matches) = matches.subcommand_matches("agent") {
                agent.effective = config::effective_json(&config::agent_of(&command), matches);
            }
            Ok(Invocation::Run(Command::Agent(agent)))
        }
        command => Ok(Invocation::Run(command)),
    }
}

/// Returns the definition of the command line, with the defaults of this machine.
pub fn command(machine: &Machine) -> clap::Command {
    config::with_machine(Cli::command(), machine)
}

/// Returns the output of `lb version`.
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
        let memory = 16 << 30;
        Machine { host_name: "worker-1".into(), cgroup_root: Some("/sys/fs/cgroup".into()), memory }
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
        // A fixed width and no environment values: the text is the same everywhere.
        let mut command = command(&machine()).term_width(100);
        if args.len() > 1 {
            command = args[1..].iter().fold(command, |command, name| {
                let mut sub = command.find_subcommand(name).cloned().unwrap_or_default();
                sub.set_bin_name(format!("{} {name}", command.get_bin_name().unwrap_or("lb")));
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
    fn help_of_lb_ingress() {
        assert_golden("help-ingress.txt", &help(&["lb", "ingress"]));
    }

    #[test]
    fn help_of_lb_cleanup() {
        assert_golden("help-cleanup.txt", &help(&["lb", "cleanup"]));
    }

    #[test]
    fn help_of_lb_doctor() {
        assert_golden("help-doctor.txt", &help(&["lb", "doctor"]));
    }

    #[test]
    fn help_of_lb_drain() {
        assert_golden("help-drain.txt", &help(&["lb", "drain"]));
    }

    #[test]
    fn help_of_lb_explain() {
        assert_golden("help-explain.txt", &help(&["lb", "explain"]));
        assert_golden("help-explain-http.txt", &help(&["lb", "explain", "http"]));
    }

    #[test]
    fn help_of_lb_monitor() {
        assert_golden("help-monitor.txt", &help(&["lb", "monitor"]));
    }

    #[test]
    fn help_of_lb_top() {
        assert_golden("help-top.txt", &help(&["lb", "top"]));
    }

    #[test]
    fn invalid_requests_are_usage_errors() {
        let error = usage_error(&["lb", "explain", "http", "shop.example"]);
        assert!(error.contains("`shop.example` is no URL of http or https"), "{error}");
        let error = usage_error(&["lb", "explain", "http", "http://a.example/", "-H", "Host"]);
        assert!(error.contains("`Host` is no header field"), "{error}");
        assert!(usage_error(&["lb", "explain"]).contains("<PROTOCOL>"));
        assert!(usage_error(&["lb", "explain", "tcp", "10.1.2.3", "10.0.0.1:80", "http"]).contains("http"));
    }

    #[test]
    fn invalid_packets_are_usage_errors() {
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
    fn a_printed_configuration_can_be_read_again() {
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
        assert_eq!(settings.maps.0.max_slots, 4096);

        let text = printed(&["lb", "agent", &config, "--mode=tc", "--print-config"]);
        assert!(text.contains("\nmode: tc  # flag --mode\n"), "{text}");
        assert!(text.contains(&format!("\nnodeName: from-file  # {}:2\n", path.display())), "{text}");
        assert!(text.contains("\nbpffs: /sys/fs/bpf  # default\n"), "{text}");
    }

    #[test]
    fn the_configuration_of_kube_proxy_replaces_defaults_only() {
        let dir = tempfile::tempdir().unwrap();
        let (own, kube_proxy) = (dir.path().join("sluice.yaml"), dir.path().join("kube-proxy.yaml"));
        std::fs::write(&own, "healthBind: 127.0.0.1:1\n").unwrap();
        let text = "kind: KubeProxyConfiguration\nmode: ipvs\nipvs: {scheduler: sh}\n\
                    healthzBindAddress: 127.0.0.1:2\nmetricsBindAddress: 127.0.0.1:3\nportRange: 1-2\n\
                    clientConnection: {kubeconfig: /nonexistent}\n";
        std::fs::write(&kube_proxy, text).unwrap();
        let config = format!("--config={}", own.display());
        let kube_proxy_config = format!("--kube-proxy-config={}", kube_proxy.display());
        let args = ["lb", "agent", &config, &kube_proxy_config, "--metrics-bind=127.0.0.1:4"];
        let Ok(Invocation::Run(Command::Agent(agent))) = run(&args) else { panic!("not an agent") };
        let ports = (agent.settings.health_bind.port(), agent.settings.metrics_bind.port());
        assert_eq!(ports, (1, 4), "the flag, and the own file, take precedence");
        assert_eq!(agent.settings.algorithm.0.name(), "sh");
        assert_eq!(agent.settings.kubeconfig, None);
        let fields: Vec<_> = agent.ignored.iter().map(|ignored| ignored.field.as_str()).collect();
        assert_eq!(fields, ["mode", "portRange", "clientConnection.kubeconfig"]);
        let text = printed(&[&args[..], &["--print-config"]].concat());
        assert!(
            text.contains(&format!("\nalgorithm: sh  # {}: ipvs.scheduler\n", kube_proxy.display())),
            "{text}"
        );

        std::fs::write(&kube_proxy, "kind: KubeProxyConfiguration\nnodePortAddresses: [x]\n").unwrap();
        let error = usage_error(&["lb", "agent", &kube_proxy_config]);
        assert!(error.contains("kube-proxy.yaml: nodePortAddresses: invalid value 'x'"), "{error}");
    }

    #[test]
    fn effective_settings_are_stored_by_file_key() {
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
    fn an_unreadable_file_is_named_in_the_error() {
        assert_eq!(
            usage_error(&["lb", "agent", "--config", "/nonexistent/sluice.yaml"]),
            "cannot read the configuration file /nonexistent/sluice.yaml"
        );
    }

    #[test]
    fn a_misspelt_flag_gets_a_suggestion() {
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
