//! Facts about the kernel.

use std::fs;
use std::path::Path;

use lb_datapath::Features;

use crate::cli::cleanup::kube_proxy::NodeCommand;
use crate::preflight;
use crate::view::doctor::{Checked, KernelFacts};

pub fn facts() -> KernelFacts {
    let privileges = preflight::may_load().map_err(|error| error.to_string());
    let features = if privileges.is_ok() { Features::probe() } else { Features::without_loading() };
    KernelFacts {
        missing_features: features.missing(),
        config: config(&features.kernel),
        release: features.kernel,
        privileges,
        lockdown: lockdown(),
    }
}

fn lockdown() -> Checked<String> {
    const PATH: &str = "/sys/kernel/security/lockdown";
    if !Path::new("/sys/kernel/security").exists() {
        return Ok("[none]".into());
    }
    match fs::read_to_string(PATH) {
        // The kernel has no lockdown, or securityfs is not mounted.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("[none]".into()),
        text => text.map_err(|error| format!("{PATH}: {error}")),
    }
}

/// Returns the configuration with which the kernel was built. Distributions install it beside the
/// kernel or its modules, or the kernel contains it.
fn config(release: &str) -> Checked<String> {
    let files = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    if let Some(text) = files.iter().find_map(|file| fs::read_to_string(file).ok()) {
        return Ok(text);
    }
    const COMPRESSED: &str = "/proc/config.gz";
    if !Path::new(COMPRESSED).exists() {
        return Err(format!("there is neither {COMPRESSED} nor {}", files.join(" nor ")));
    }
    NodeCommand::new("gzip", &["-dc", COMPRESSED]).run().map_err(|error| error.to_string())
}
