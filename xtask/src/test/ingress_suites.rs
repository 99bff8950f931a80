//! `cargo xtask test ingress-suites`: conformance programs of others against `lb ingress`. They are
//! kept below `target/ingress-suites/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use lb_build::progress::{report, timed};

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

/// A program that is built from a Go module.
struct GoProgram {
    name: &'static str,
    package: &'static str,
}

const GO_PROGRAMS: [GoProgram; 4] = [
    GoProgram { name: "autobahn", package: "github.com/gorilla/websocket/examples/autobahn" },
    GoProgram { name: "grpc-client", package: "google.golang.org/grpc/interop/client" },
    GoProgram { name: "grpc-server", package: "google.golang.org/grpc/interop/server" },
    GoProgram { name: "h2spec", package: "github.com/summerwind/h2spec/cmd/h2spec" },
];

const MODULES: &str = "\
\tgithub.com/gorilla/websocket v1.5.3
\tgithub.com/summerwind/h2spec v2.2.1+incompatible
\tgoogle.golang.org/grpc v1.85.0
";

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
    let bin = root.join("bin");
    let missing: Vec<_> = GO_PROGRAMS.iter().filter(|program| !bin.join(program.name).is_file()).collect();
    if missing.is_empty() {
        return Ok(bin);
    }
    if !go::is_installed() {
        bail!("Go is needed to build the suites\nremedy: {}", go::INSTALL);
    }
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let lock = fs::File::create(root.join("lock"))?;
    lock.lock()?;
    let module = root.join("module");
    if !module.join("go.sum").is_file() {
        fs::create_dir_all(&module)?;
        report(task::INGRESS_SUITES, "fetching the Go modules of the suites");
        let head = "module sluice.test/suites\n\ngo 1.26.0\n";
        fs::write(module.join("go.mod"), format!("{head}\nrequire (\n{MODULES})\n"))?;
        fs::write(module.join("tools.go"), tools_go())?;
        timed(task::INGRESS_SUITES, "resolved the modules", || {
            go::run(task::INGRESS_SUITES, &module, &["mod", "tidy"])
        })?;
    }
    for program in missing {
        go::report_build(task::INGRESS_SUITES, program.name, "about a minute");
        let file = bin.join(program.name);
        go::build(task::INGRESS_SUITES, &module, program.package, &["-ldflags", "-s -w"], &file)?;
    }
    Ok(bin)
}

/// Returns a Go file that imports all programs, so that `go mod tidy` keeps their modules.
fn tools_go() -> String {
    let imports: String =
        GO_PROGRAMS.iter().map(|program| format!("\t_ \"{}\"\n", program.package)).collect();
    format!("//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
}
