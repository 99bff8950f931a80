//! `cargo xtask test ingress-suites`: conformance programs of others against `lb ingress`. They are
//! kept below `target/ingress-suites/`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use lb_build::progress::report;

use crate::{
    build_ebpf, go, kernels,
    process::{cargo, is_root},
    setup::{self, Component, InstallOptions, Need, Program},
    task, workspace,
};

#[derive(clap::Args, Default)]
pub struct Options {
    /// Run these suites only
    #[arg(value_enum)]
    suites: Vec<Suite>,
    #[command(flatten)]
    setup: InstallOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// h2spec: HTTP/2 and HPACK, with and without TLS
    H2spec,
    /// The interoperability tests of gRPC, with and without TLS on each side
    Grpc,
    /// Frames of WebSocket and their echo, as in the suite of Autobahn
    Websocket,
    /// testssl.sh: no weak protocol or cipher, grade A
    Tls,
}

/// The programs with their packages.
const PROGRAMS: [(&str, &str); 4] = [
    ("autobahn", "github.com/gorilla/websocket/examples/autobahn"),
    ("grpc-client", "google.golang.org/grpc/interop/client"),
    ("grpc-server", "google.golang.org/grpc/interop/server"),
    ("h2spec", "github.com/summerwind/h2spec/cmd/h2spec"),
];

/// The modules of the programs, with their versions.
const MODULES: [(&str, &str); 3] = [
    ("github.com/gorilla/websocket", "v1.5.3"),
    ("github.com/summerwind/h2spec", "v2.2.1+incompatible"),
    ("google.golang.org/grpc", "v1.85.0"),
];

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("creates a network namespace: run `sudo -E cargo xtask test ingress-suites`");
    }
    let needs = [Program::Compiler, Program::Ip, Program::Openssl, Program::Hexdump].map(Need::Program);
    setup::provide(&[&needs[..], &[Need::Component(Component::KernelRustSrc)]].concat(), options.setup)?;
    build_ebpf::ensure()?;
    let root = workspace::target().join("ingress-suites");
    let mut command = cargo();
    let all = options.suites.is_empty();
    if all || options.suites.contains(&Suite::Tls) {
        command.env("SLUICE_TESTSSL", kernels::testssl(&root)?);
    }
    if all || options.suites.iter().any(|suite| *suite != Suite::Tls) {
        command.env("SLUICE_SUITES_BIN", go_programs(&root)?);
    }
    command.args(["test", "-p", "lb-testbed", "--no-default-features", "--test", "ingress_suites", "--"]);
    let names = options.suites.iter().filter_map(|suite| suite.to_possible_value());
    command.args(names.map(|name| format!("{}::", name.get_name())));
    command.args(["--nocapture", "--test-threads=1"]);
    if !command.status()?.success() {
        bail!("a suite failed, see above");
    }
    Ok(())
}

/// Returns the folder with the programs that are built from Go modules.
fn go_programs(root: &Path) -> Result<PathBuf> {
    let programs = PROGRAMS.map(|(name, package)| go::Program { name, package: package.to_owned() });
    let root = root.join(MODULES.map(|(_, version)| version).join("-"));
    if !go::missing(&root, &programs).is_empty() && !go::is_installed() {
        bail!("Go is needed to build the suites\nremedy: {}", go::INSTALL);
    }
    let task = task::INGRESS_SUITES;
    let folder = go::Programs { task, root, flags: &["-ldflags", "-s -w"], takes: "about a minute" };
    folder.provide(&programs, |module| {
        go::resolve(task, module, &programs, || {
            report(task, "fetching the Go modules of the suites");
            Ok(go_mod())
        })
    })
}

fn go_mod() -> String {
    let requires: String =
        MODULES.iter().map(|(module, version)| format!("\t{module} {version}\n")).collect();
    format!("module sluice.test/suites\n\ngo 1.26.0\n\nrequire (\n{requires})\n")
}
