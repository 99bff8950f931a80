//! Configuration of the agent.
//!
//! The fields of [`Config`] are the only list of settings. clap derives the flags and the
//! environment variables from them. The key of a setting in the YAML file is the name of its flag
//! in camelCase. Its value is parsed like that of the flag. The values in the file replace the
//! defaults of the flags, so the precedence is: flag, environment, file, file of kube-proxy,
//! default.

mod agent_args;
mod file;
mod kube_proxy;
mod machine;
mod print;
mod schema;
mod settings;
mod sizes;
mod values;

pub use agent_args::{
    AgentArgs, ReadArguments, SettingsError, agent_of, read_arguments, read_settings, with_machine,
};
pub use file::{ConfigFile, FileError};
pub use kube_proxy::{IgnoredField, KubeProxyError, Translation};
pub use machine::Machine;
pub use print::{effective_json, effective_yaml, translated_yaml};
pub use settings::Config;
pub use sizes::SizeFlags;
pub use values::{
    ApiServers, Cidrs, DatapathLogLevel, DefaultAlgorithm, ExternalIps, FlowTimeoutList, ForwardMode,
    LogFilter, LogFormat, PortRange, SocketHooks, TcAttachMode, TerminateSockets, ValueError,
};
