//! Options of `cargo xtask test`.

use clap::ValueEnum as _;

use super::{image, ingress_suites, part::Part, releases, takeover};
use crate::{kernels, setup};

#[derive(clap::Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Run these parts only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    pub only: Vec<Part>,
    /// Run all but these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART", conflicts_with = "only")]
    skip: Vec<Part>,
    /// Fail if a part cannot run on this machine, instead of skipping it
    #[arg(long)]
    pub require_all: bool,
    #[command(flatten)]
    pub setup: setup::InstallOptions,
    /// Run the tests whose name contains this, in the parts that have named tests
    pub filter: Option<String>,
    /// Passed on to the test programs (such as `--nocapture`)
    #[arg(last = true)]
    pub test_args: Vec<String>,
    #[command(subcommand)]
    pub separate: Option<Separate>,
}

/// Tests with options of their own.
#[derive(clap::Subcommand)]
pub enum Separate {
    /// Boot other kernels in emulated machines and test there (needs root and QEMU)
    Kernels(kernels::Options),
    /// Run h2spec, the interoperability tests of gRPC, WebSocket cases and testssl.sh against
    /// `lb ingress` (needs root, Go and Debian's apt)
    IngressSuites(ingress_suites::Options),
    /// Build the image and run the agent in a container with it (needs root and Debian's apt)
    Image(image::Options),
    /// Take a node over from a real kube-proxy, and give it back (needs root, etcd, and Go to build
    /// the programs of Kubernetes)
    Takeover(takeover::Options),
    /// Run the part `cluster` with older releases of Kubernetes (needs root, etcd, and Go to build
    /// their API servers)
    Releases(releases::Options),
}

impl Options {
    /// The options of `cargo xtask tidy`.
    pub fn tidy() -> Self {
        Self { only: vec![Part::Tidy], ..Self::default() }
    }

    /// Returns the selected parts in the order in which they run.
    pub fn parts(&self) -> Vec<Part> {
        Part::value_variants()
            .iter()
            .copied()
            .filter(|part| self.only.is_empty() || self.only.contains(part))
            .filter(|part| !self.skip.contains(part))
            // A filter selects the parts with named tests, unless --only names others.
            .filter(|part| self.filter.is_none() || !part.is_one_check() || self.only.contains(part))
            .collect()
    }
}
