//! The list of crates in the program (CycloneDX), by cargo-cyclonedx: those of the agent, and those
//! of the kernel programs. The build script of lb-datapath compiles the latter, so cargo does not
//! list them as dependencies of the agent.

use anyhow::{Context as _, Result, bail};
use lb_build::progress::{timed, watched};
use serde_json::Value;

use crate::{cargo_tools::Tool, process::command, task, tree::Tree, workspace};

const TOOL: Tool = Tool { task: task::IMAGE, name: "cargo-cyclonedx", version: "0.5.9" };
const AGENT: &str = "lb-userspace";
const KERNEL_PROGRAMS: &str = "lb-ebpf";
/// The crate that contains the kernel programs.
const DATAPATH: &str = "lb-datapath";

/// Returns the list for a target.
pub fn of(target: &str) -> Result<String> {
    let Some(program) = TOOL.provide()? else {
        bail!("cargo-cyclonedx could not be built, see above\nremedy: {}", TOOL.remedy());
    };
    // The program writes its output beside the manifest of each crate, so it gets a copy of the
    // sources.
    let tree = Tree::copy_to(workspace::target().join("image/sources"))?;
    let list = |name: &str, target: &str| {
        let mut cyclonedx = command(&program);
        cyclonedx
            .current_dir(tree.root())
            .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--target", target])
            .args(["--override-filename", "sbom", "--manifest-path"])
            .arg(tree.root().join(name).join("Cargo.toml"));
        timed(task::IMAGE, &format!("listed the crates of {name}"), || watched(task::IMAGE, &mut cyclonedx))
            .context("cannot run cargo-cyclonedx")?
            .map_err(|failure| anyhow::anyhow!("cargo-cyclonedx failed: {failure}"))?;
        serde_json::from_str(&tree.read(&format!("{name}/sbom.json"))?)
            .context("cargo-cyclonedx wrote no JSON")
    };
    let whole = merged(list(AGENT, target)?, list(KERNEL_PROGRAMS, lb_build::TARGET)?)?;
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

/// Adds the crates of the kernel programs to the list of the agent's.
fn merged(mut agent: Value, kernel: Value) -> Result<Value> {
    let programs = &kernel["metadata"]["component"];
    let name = programs["bom-ref"].as_str().context("the list of lb-ebpf does not name it")?;
    for part in ["components", "dependencies"] {
        let of_kernel =
            kernel[part].as_array().with_context(|| format!("no {part} in the list of lb-ebpf"))?;
        let all =
            agent[part].as_array_mut().with_context(|| format!("no {part} in the list of lb-userspace"))?;
        let own: Vec<Value> = all.iter().map(reference).cloned().collect();
        all.extend(of_kernel.iter().filter(|entry| !own.contains(reference(entry))).cloned());
    }
    let components = agent["components"].as_array_mut().context("no components")?;
    let datapath = components.iter().find(|component| component["name"] == DATAPATH);
    let datapath = datapath.context("lb-datapath is not in the list")?["bom-ref"].clone();
    components.push(programs.clone());
    let dependencies = agent["dependencies"].as_array_mut().context("no dependencies")?;
    let entry = dependencies.iter_mut().find(|entry| entry["ref"] == datapath);
    let depends_on = entry.and_then(|entry| entry["dependsOn"].as_array_mut());
    depends_on.context("lb-datapath depends on nothing")?.push(name.into());
    Ok(agent)
}

/// Returns the name of a component, or of the one whose dependencies an entry lists.
fn reference(entry: &Value) -> &Value {
    entry.get("bom-ref").unwrap_or(&entry["ref"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merged;

    #[test]
    fn crates_of_both_are_listed_once() {
        let agent = json!({
            "metadata": { "component": { "bom-ref": "a", "name": "lb-userspace" } },
            "components": [
                { "bom-ref": "d", "name": "lb-datapath" }, { "bom-ref": "c", "name": "lb-common" },
            ],
            "dependencies": [
                { "ref": "a", "dependsOn": ["d"] }, { "ref": "d", "dependsOn": ["c"] }, { "ref": "c" },
            ],
        });
        let kernel = json!({
            "metadata": { "component": { "bom-ref": "e", "name": "lb-ebpf" } },
            "components": [
                { "bom-ref": "c", "name": "lb-common" }, { "bom-ref": "y", "name": "aya-ebpf" },
            ],
            "dependencies": [{ "ref": "e", "dependsOn": ["c", "y"] }, { "ref": "c" }, { "ref": "y" }],
        });
        let whole = merged(agent, kernel).expect("a list");
        let names = whole["components"].as_array().expect("components");
        let names: Vec<_> =
            names.iter().map(|component| component["name"].as_str().expect("a name")).collect();
        assert_eq!(names, ["lb-datapath", "lb-common", "aya-ebpf", "lb-ebpf"]);
        assert_eq!(
            whole["dependencies"],
            json!([
                { "ref": "a", "dependsOn": ["d"] }, { "ref": "d", "dependsOn": ["c", "e"] }, { "ref": "c" },
                { "ref": "e", "dependsOn": ["c", "y"] }, { "ref": "y" },
            ])
        );
    }
}
