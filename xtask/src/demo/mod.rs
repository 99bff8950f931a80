//! `cargo xtask demo`: sets up the machine, builds the agent, the servers and the demo program, and
//! runs that program.
//!
//! The demo program (`main.rs`) is a program of its own, so that xtask itself compiles in seconds
//! and its first lines appear before anything else is built.

mod options;

use std::{env, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result, bail};

pub use self::options::Options;
use crate::{
    build_ebpf,
    process::{cargo, command, compile, is_root},
    setup::{self, Component, Need, Program},
    workspace,
};

/// `cargo xtask demo` and its options.
#[derive(clap::Args)]
pub struct DemoTask {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    setup: setup::InstallOptions,
}

pub fn run(task: &DemoTask) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo creates network namespaces and loads kernel programs: run `sudo -E cargo xtask demo`"
        );
    }
    if !task.options.remove {
        println!("{}", introduction());
    }
    let needs = [
        Need::Component(Component::KernelRustSrc),
        Need::Program(Program::Compiler),
        Need::Program(Program::Ip),
        Need::Program(Program::Ethtool),
    ];
    let of_ingress = [Need::Program(Program::Curl), Need::Program(Program::Openssl)];
    let of_ingress = if task.options.ingress { &of_ingress[..] } else { &[] };
    setup::provide(&[&needs, of_ingress].concat(), task.setup)?;
    build_ebpf::ensure()?;
    // Three builds, because features of a crate are the union over one build: the testbed would add
    // features to the libraries of the agent, and the servers need no features of their own.
    let agent = ["--package", "lb-userspace", "--bin", "lb"].as_slice();
    let servers = ["--package", "lb-testbed", "--bin", "lb-testbed", "--no-default-features"].as_slice();
    let demo = ["--package", "xtask", "--bin", "demo", "--features", "demo"].as_slice();
    for arguments in [agent, servers, demo] {
        compile(cargo().arg("build").args(arguments))?;
    }
    // The demo program takes the same options. It replaces this process, so that it receives
    // Ctrl-C.
    let arguments = env::args_os().skip(2).filter(|argument| argument != "--no-install");
    let program = workspace::target().join("debug/demo");
    let error = command(&program).args(arguments).current_dir(workspace::root()).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn introduction() -> String {
    let built = workspace::target().join("debug/demo").exists();
    let time = if built {
        "Takes about 30 seconds."
    } else {
        "The first run downloads and builds some 300 crates: it takes about four minutes on two cores, later runs 30 seconds."
    };
    format!(
        "Sluice demo: two nodes with a real agent each, four pods, and a client outside the cluster.\n\
         They live in network namespaces; the network of this machine stays as it is. Ctrl-C removes everything.\n{time}\n"
    )
}
