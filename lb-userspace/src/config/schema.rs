//! Lists the settings with their keys in the file.

/// Help heading of the arguments of `lb agent` that are not settings.
pub const GENERAL: &str = "Configuration";

/// A setting: its clap argument and its key in the file.
pub struct Setting<'a> {
    pub arg: &'a clap::Arg,
    /// The name of the flag in camelCase.
    pub key: String,
}

/// Returns the arguments of `lb agent` that are settings, in the order of the help.
pub fn settings(agent: &clap::Command) -> impl Iterator<Item = Setting<'_>> {
    agent
        .get_arguments()
        .filter(|arg| arg.get_help_heading().is_some_and(|h| h != GENERAL))
        .filter_map(|arg| Some(Setting { arg, key: camel_case(arg.get_long()?) }))
}

fn camel_case(flag: &str) -> String {
    let mut words = flag.split('-');
    let mut key = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        key.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        key.push_str(letters.as_str());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flags_in_camel_case() {
        assert_eq!(camel_case("devices"), "devices");
        assert_eq!(camel_case("max-half-open"), "maxHalfOpen");
    }

    #[test]
    fn every_setting_can_be_given_by_flag_environment_and_file() {
        let agent = super::super::agent_args::agent_command();
        for setting in settings(&agent) {
            let variable = setting.arg.get_env().expect("an environment variable").to_string_lossy();
            let flag = setting.arg.get_long().unwrap();
            assert_eq!(variable, format!("SLUICE_{}", flag.replace('-', "_").to_uppercase()));
            assert!(setting.arg.get_help().is_some(), "{flag} has no help");
        }
        assert!(settings(&agent).count() >= 20);
    }
}
