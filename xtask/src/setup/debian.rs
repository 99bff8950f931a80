//! Programs of the system and the Debian packages that contain them.

use anyhow::{Context as _, Result, bail};
use lb_build::progress::{timed, watched};

use crate::{
    aarch64,
    process::{command, is_installed, is_root},
    task,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Compiler,
    Ip,
    Ethtool,
    Bpftool,
    Curl,
    Iptables,
    Nft,
    Ipset,
    Ipvsadm,
    Etcd,
    Qemu,
    Depmod,
    Strip,
    Xz,
    Zstd,
    Lz4,
    Openssl,
    Hexdump,
    Wrk,
    H2load,
    Aarch64Compiler,
    Aarch64Strip,
    MuslCompiler,
    Umoci,
}

impl Program {
    /// Returns the program's file name. The machine has the program if a folder in PATH has this
    /// file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compiler => "cc",
            Self::Ip => "ip",
            Self::Ethtool => "ethtool",
            Self::Bpftool => "bpftool",
            Self::Curl => "curl",
            Self::Iptables => "iptables-nft",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Ipvsadm => "ipvsadm",
            Self::Etcd => "etcd",
            Self::Qemu => "qemu-system-x86_64",
            Self::Depmod => "depmod",
            Self::Strip => "strip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Openssl => "openssl",
            Self::Hexdump => "hexdump",
            Self::Wrk => "wrk",
            Self::H2load => "h2load",
            Self::Aarch64Compiler => aarch64::COMPILER,
            Self::Aarch64Strip => "aarch64-linux-gnu-strip",
            Self::MuslCompiler => "musl-gcc",
            Self::Umoci => "umoci",
        }
    }

    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Compiler => &["gcc", "libc6-dev"],
            Self::Ip => &["iproute2"],
            Self::Ethtool => &["ethtool"],
            Self::Bpftool => &["bpftool"],
            Self::Curl => &["curl"],
            Self::Iptables => &["iptables"],
            Self::Nft => &["nftables"],
            Self::Ipset => &["ipset"],
            Self::Ipvsadm => &["ipvsadm"],
            Self::Etcd => &["etcd-server"],
            Self::Qemu => &["qemu-system-x86"],
            Self::Depmod => &["kmod"],
            Self::Strip => &["binutils"],
            Self::Xz => &["xz-utils"],
            Self::Zstd => &["zstd"],
            Self::Lz4 => &["lz4"],
            Self::Openssl => &["openssl"],
            Self::Hexdump => &["bsdextrautils"],
            Self::Wrk => &["wrk"],
            Self::H2load => &["nghttp2-client"],
            Self::Aarch64Compiler => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::Aarch64Strip => &["binutils-aarch64-linux-gnu"],
            Self::MuslCompiler => &["musl-tools"],
            Self::Umoci => &["umoci"],
        }
    }

    pub fn purpose(self) -> &'static str {
        match self {
            Self::Compiler => "links Rust programs, compiles the C code of crates",
            Self::Ip => "network namespaces and devices",
            Self::Ethtool => "offloads of devices",
            Self::Bpftool => "shows maps and programs",
            Self::Curl => "sends requests to Ingresses",
            Self::Iptables | Self::Nft => {
                "rules of kube-proxy, for the tests of takeovers and of their removal"
            }
            Self::Ipset => "sets of kube-proxy, for the tests of their removal",
            Self::Ipvsadm => "virtual servers of IPVS, which Sluice is compared with",
            Self::Etcd => "storage of the real API server",
            Self::Qemu => "machines with other kernels",
            Self::Depmod => "modules of other kernels",
            Self::Strip | Self::Aarch64Strip => "makes programs for other kernels small",
            Self::Xz | Self::Zstd | Self::Lz4 => "decompresses other kernels",
            Self::Openssl => "certificates, and connections of testssl.sh",
            Self::Hexdump => "testssl.sh reads records of TLS with it",
            Self::Wrk | Self::H2load => "load of HTTP",
            Self::Aarch64Compiler => "compiles C code and links programs for aarch64",
            Self::MuslCompiler => "compiles the C code of the static program",
            Self::Umoci => "writes images",
        }
    }

    pub fn is_installed(self) -> bool {
        is_installed(self.name())
    }
}

/// Returns the reason why [`install`] cannot install these programs on this machine.
pub fn cannot_install(programs: &[Program]) -> Option<&'static str> {
    if programs.is_empty() {
        None
    } else if !is_installed("apt-get") {
        Some(
            "this machine has no apt-get\nremedy: install the packages of your distribution with these programs",
        )
    } else if !is_root() {
        Some(
            "apt-get needs root\nremedy: run `sudo -E` with the same command, or install the packages yourself",
        )
    } else {
        None
    }
}

/// Installs the packages of `programs` with apt-get.
pub fn install(programs: &[Program]) -> Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = programs.iter().flat_map(|program| program.packages()).copied().collect();
    timed(task::SETUP, &format!("installed {}", packages.join(" ")), || {
        apt_get(&["update"])?;
        apt_get(&[&["install", "--yes", "--no-install-recommends"][..], &packages].concat())
    })?;
    let missing: Vec<_> =
        programs.iter().filter(|program| !program.is_installed()).map(|program| program.name()).collect();
    if !missing.is_empty() {
        bail!(
            "apt-get installed {} but there is no program {}\nremedy: install it and add its folder to PATH",
            packages.join(" "),
            missing.join(" ")
        );
    }
    Ok(())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut apt_get = command("apt-get");
    // RUNLEVEL=1 keeps the package of etcd from starting a server: the tests start their own.
    apt_get.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    watched(task::SETUP, &mut apt_get)
        .context("cannot run apt-get")?
        .map_err(|failure| anyhow::anyhow!("`apt-get {}` failed: {failure}", arguments.join(" ")))
}
