//! The parts of the tests, with the programs and components that each needs.

use clap::ValueEnum;

use crate::{
    kernels,
    setup::{self, Component, Need},
};

/// A part of the tests. The order is that in which they run: the quick parts come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Formatting
    Fmt,
    /// Licences, sources, duplicates and advisories of the crates that this workspace depends on
    Deny,
    /// Lints of the compiler and clippy, warnings denied; the kernel programs with their own
    /// toolchain
    Clippy,
    /// The agent and the kernel programs compile for aarch64 (nothing is run)
    Cross,
    /// Rules of this repository: links, documentation of maps, manifests
    Tidy,
    /// deploy/ as kustomize, Helm and Prometheus read it (needs Go to build these)
    Deploy,
    /// Unit and property tests
    Unit,
    /// Unit tests of the pure crates under Miri, which detects undefined behaviour (needs a
    /// nightly)
    Miri,
    /// Packets through the loaded kernel programs (needs root)
    Packets,
    /// Real connections in network namespaces (needs root)
    E2e,
    /// The agent against a real Kubernetes API server (needs root, etcd, and Go to build the
    /// server)
    Cluster,
    /// The programs load and a smoke test passes on three other kernels in emulated machines
    /// (needs root, QEMU and Debian's apt)
    Kernels,
}

impl Part {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub fn needs_root(self) -> bool {
        matches!(self, Self::Packets | Self::E2e | Self::Cluster | Self::Kernels)
    }

    pub fn compiles_the_agent(self) -> bool {
        !matches!(self, Self::Fmt | Self::Deny | Self::Deploy | Self::Miri)
    }

    /// Returns whether the part passes or fails as a whole. Such a part has no tests with names.
    pub fn is_one_check(self) -> bool {
        matches!(self, Self::Fmt | Self::Deny | Self::Clippy | Self::Cross | Self::Kernels)
    }

    /// Returns the programs and components that the machine must have before this part can run.
    pub fn needs(self) -> Vec<Need> {
        use setup::Program::{Bpftool, Compiler, Etcd, Ethtool, Ip, Ipset, Iptables, Nft};

        let components: &[Component] = match self {
            Self::Fmt => &[Component::Rustfmt],
            Self::Clippy => &[Component::Clippy, Component::KernelClippy, Component::KernelRustSrc],
            Self::Deny | Self::Deploy | Self::Miri => &[],
            Self::Cross
            | Self::Tidy
            | Self::Unit
            | Self::Packets
            | Self::E2e
            | Self::Cluster
            | Self::Kernels => &[Component::KernelRustSrc],
        };
        let programs: &[setup::Program] = match self {
            Self::Fmt => &[],
            Self::Deny | Self::Clippy | Self::Tidy | Self::Deploy | Self::Unit | Self::Miri => &[Compiler],
            Self::Cross => &[Compiler, setup::Program::Aarch64Compiler],
            Self::Packets => &[Compiler, Ip],
            Self::E2e => &[Compiler, Ip, Ethtool, Bpftool, Iptables, Nft, Ipset],
            Self::Cluster => &[Compiler, Ip, Ethtool, Etcd],
            Self::Kernels => &kernels::PROGRAMS,
        };
        let components = components.iter().copied().map(Need::Component);
        components.chain(programs.iter().copied().map(Need::Program)).collect()
    }
}
