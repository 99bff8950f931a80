//! Parses the arguments of `lb agent`: flags, environment and file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::file::{ConfigFile, FileError};
use super::kube_proxy::{IgnoredField, KubeProxyError, Translation};
use super::machine::Machine;
use super::schema::GENERAL;
use super::settings::Config;
use super::sizes::with_max_flows;

#[derive(Debug, PartialEq, Args)]
#[command(after_help = AGENT_EXAMPLES)]
pub struct AgentArgs {
    /// YAML file with settings; each key is the name of a flag in camelCase, as in --print-config
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE", help_heading = GENERAL)]
    pub config: Option<PathBuf>,

    /// KubeProxyConfiguration of kube-proxy. The settings that are equivalent replace the defaults
    ///
    /// The agent logs which fields it ignores, with the reason. `lb migrate kube-proxy` prints the
    /// same without starting an agent.
    #[arg(long, env = "SLUICE_KUBE_PROXY_CONFIG", value_name = "FILE", help_heading = GENERAL)]
    pub kube_proxy_config: Option<PathBuf>,

    /// Print the effective settings as a YAML file, with the origin of each, and exit
    #[arg(long, help_heading = GENERAL)]
    pub print_config: bool,

    #[command(flatten)]
    pub settings: Config,

    /// The effective settings by file key. The agent serves them over HTTP (/configz).
    #[arg(skip)]
    pub effective: serde_json::Map<String, serde_json::Value>,

    /// The fields of --kube-proxy-config without an equivalent. The agent logs them.
    #[arg(skip)]
    pub ignored: Vec<IgnoredField>,
}

const AGENT_EXAMPLES: &str = "\
Each setting can be a flag, an environment variable or a key in the file of --config. A flag
overrides the environment, the environment overrides the file, and the file overrides
--kube-proxy-config. Separate the items of a list by commas.

Examples:
  lb agent --kubeconfig /etc/kubernetes/kubeconfig --node-name worker-1
  lb agent --manifests ./manifests --devices 'eth*' --mode tc
  SLUICE_LOG_LEVEL=debug lb agent --config /etc/sluice/config.yaml";

impl AgentArgs {
    /// Returns an error if settings exclude each other.
    pub fn check(&self) -> Result<(), SettingsError> {
        match self.settings.kubeconfig.is_some() && self.settings.manifests.is_some() {
            true => Err(SettingsError::TwoSources),
            false => Ok(()),
        }
    }
}

/// Arguments or a configuration file that are not valid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// clap returns `--help` and `--version` as errors too.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    KubeProxy(#[from] KubeProxyError),
    /// clap detects this on the command line, but not if one of the two is set in the file.
    #[error("kubeconfig and manifests are both set; set only one of them")]
    TwoSources,
}

/// A parsed command line. The values in the file are the defaults of its flags.
pub struct ReadArguments {
    pub command: clap::Command,
    pub matches: ArgMatches,
    pub file: Option<ConfigFile>,
    /// The fields of --kube-proxy-config without an equivalent.
    pub ignored: Vec<IgnoredField>,
}

/// Parses a command line of `command`. If it has `lb agent --config` or `--kube-proxy-config`, the
/// values in these files replace the defaults of the flags, and the command line is parsed again.
pub fn read_arguments(
    command: clap::Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<ReadArguments, SettingsError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let matches = command.clone().try_get_matches_from(&arguments)?;
    let agent = matches.subcommand_matches("agent");
    let path = |id| agent.and_then(|agent| agent.get_one::<PathBuf>(id));
    let schema = agent_of(&command);
    let own = path("config").map(|path| ConfigFile::read(path, &schema)).transpose()?;
    let (kube_proxy, ignored) = match path("kube_proxy_config") {
        Some(path) => {
            let translation = Translation::read(path)?.without_missing_kubeconfig();
            (Some(ConfigFile::of_kube_proxy(path, &translation, &schema)?), translation.ignored)
        }
        None => (None, Vec::new()),
    };
    let file = match (own, kube_proxy) {
        (Some(own), Some(kube_proxy)) => own.over(kube_proxy),
        (Some(file), None) | (None, Some(file)) => file,
        (None, None) => return Ok(ReadArguments { command, matches, file: None, ignored }),
    };
    let command = command.mut_subcommand("agent", |agent| file.as_defaults(agent));
    let matches = command.clone().try_get_matches_from(&arguments)?;
    Ok(ReadArguments { command, matches, file: Some(file), ignored })
}

/// Returns the subcommand `agent`.
pub fn agent_of(command: &clap::Command) -> clap::Command {
    command.find_subcommand("agent").cloned().unwrap_or_default()
}

/// Adds the defaults that depend on the machine to the subcommand `agent`.
pub fn with_machine(command: clap::Command, machine: &Machine) -> clap::Command {
    command.mut_subcommand("agent", |agent| {
        // mut_args() keeps the order of the arguments, mut_arg() does not.
        agent.mut_args(|arg| match (arg.get_id().as_str(), &machine.cgroup_root) {
            ("node_name", _) => arg.default_value(machine.host_name.clone()),
            ("max_flows", _) => with_max_flows(arg, machine.max_flows()),
            ("max_map_memory", _) => arg.default_value(machine.max_map_memory().to_string()),
            ("cgroup", Some(root)) => arg.default_value(root.as_os_str().to_owned()),
            _ => arg,
        })
    })
}

/// A command line that has no other subcommand.
#[derive(Debug, Parser)]
#[command(name = "lb")]
struct AgentOnly {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    Agent(Box<AgentArgs>),
}

/// Returns the settings that `lb agent` has with these arguments.
pub fn read_settings(arguments: Vec<OsString>, machine: &Machine) -> Result<Config, SettingsError> {
    let line = ["lb", "agent"].into_iter().map(OsString::from).chain(arguments);
    let read = read_arguments(with_machine(AgentOnly::command(), machine), line)?;
    let AgentCommand::Agent(agent) = AgentOnly::from_arg_matches(&read.matches)?.command;
    agent.check()?;
    Ok(agent.settings)
}

/// Returns the command `lb agent`, without the defaults of this machine.
#[cfg(test)]
pub fn agent_command() -> clap::Command {
    agent_of(&AgentOnly::command())
}
