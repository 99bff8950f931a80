//! Configuration of the agent.
//!
//! There is one schema: the fields of [`Config`]. clap makes the flags and the environment variables of it; a key of the
//! YAML file is the name of the flag in camelCase, and its value is parsed as the flag's would be. A file works by
//! replacing the defaults of the flags, so the precedence is: flag, environment, file, default.

mod agent_args;
mod file;
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
pub use machine::Machine;
pub use print::{effective_json, effective_yaml};
pub use settings::Config;
pub use sizes::SizeFlags;
pub use values::{
    Cidrs, DatapathLog, ExternalIps, FlowTimeoutList, LogFilter, LogFormat, PortRange, SocketHooks,
    TcAttachMode, TerminateSockets, ValueError,
};
