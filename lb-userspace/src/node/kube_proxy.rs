//! Finds out whether rules of kube-proxy are in this network namespace, without a program of the
//! host: the image of the agent has neither `iptables` nor `nft`.
//!
//! Only the names of chains and tables are looked at. The kubelet's chains (`KUBE-FIREWALL`,
//! `KUBE-KUBELET-CANARY`) have other names.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, netlink, socket};

use super::dump::dump;

/// A chain that kube-proxy creates in iptables mode, also for IPVS.
const CHAIN: &[u8] = b"KUBE-SERVICES\0";
/// The table of kube-proxy in nftables mode.
const TABLE: &[u8] = b"kube-proxy\0";
/// The device of kube-proxy in IPVS mode.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Returns whether kube-proxy has rules in the network namespace of the calling thread. An error
/// means that this is unknown.
pub fn has_rules() -> io::Result<bool> {
    Ok(has_nftables_rules()? || has_legacy_rules(libc::AF_INET)? || has_legacy_rules(libc::AF_INET6)?)
}

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_CHAIN: u16 = 10 << 8 | 4;

/// Lists the chains of nftables, which include those of `iptables-nft`.
fn has_nftables_rules() -> io::Result<bool> {
    /// `struct nfgenmsg`: every address family.
    const EVERY_FAMILY: [u8; 4] = [0; 4];
    let mut found = false;
    dump(netlink::NETFILTER, GET_CHAIN, &EVERY_FAMILY, |chain| {
        found |= contains(chain, CHAIN) || contains(chain, TABLE);
    })?;
    Ok(found)
}

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` (linux/netfilter_ipv4/ip_tables.h); the numbers for
/// IPv6 are the same.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Length of `struct ipt_getinfo`. Its last field is the size of the rules.
const INFO: usize = 84;
/// Length of `struct ipt_get_entries` without the rules.
const ENTRIES: usize = 40;

/// Reads the rules of the table `nat` of `iptables-legacy`. Its chains are entries with a name.
fn has_legacy_rules(family: libc::c_int) -> io::Result<bool> {
    let (tables, level, address_family) = match family {
        libc::AF_INET => ("/proc/thread-self/net/ip_tables_names", libc::IPPROTO_IP, AddressFamily::INET),
        _ => ("/proc/thread-self/net/ip6_tables_names", libc::IPPROTO_IPV6, AddressFamily::INET6),
    };
    // Reading a table that does not exist would create it.
    if !std::fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "nat")) {
        return Ok(false);
    }
    let socket = socket(address_family, SocketType::RAW, Some(rustix::net::ipproto::RAW))?;
    let mut info = vec![0; INFO];
    info[..3].copy_from_slice(b"nat");
    get_option(&socket, level, GET_INFO, &mut info)?;
    let size = u32::from_ne_bytes([info[80], info[81], info[82], info[83]]);
    let mut entries = vec![0; ENTRIES + size as usize];
    entries[..3].copy_from_slice(b"nat");
    entries[32..36].copy_from_slice(&size.to_ne_bytes());
    get_option(&socket, level, GET_ENTRIES, &mut entries)?;
    Ok(contains(&entries, CHAIN))
}

fn get_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn contains(bytes: &[u8], name: &[u8]) -> bool {
    bytes.windows(name.len()).any(|window| window == name)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::node::testing::enter_new_namespace;

    fn run(program: &str, arguments: &str) {
        let output = Command::new(program).args(arguments.split(' ')).output().expect("the program runs");
        assert!(output.status.success(), "{program} {arguments}: {output:?}");
    }

    #[test]
    fn rules_of_kube_proxy_are_found_and_those_of_others_are_not() {
        let test = || {
            enter_new_namespace();
            assert!(!has_rules().expect("readable"), "there are no rules");
            for program in ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"] {
                run(program, "-t nat -N KUBE-KUBELET-CANARY");
                assert!(!has_rules().expect("readable"), "only the kubelet has rules");
                run(program, "-t nat -N KUBE-SERVICES");
                assert!(has_rules().expect("readable"), "{program}");
                run(program, "-t nat -X KUBE-SERVICES");
                assert!(!has_rules().expect("readable"), "removed again: {program}");
            }
            run("nft", "add table ip kube-proxy-other");
            run("nft", "add chain ip kube-proxy-other services");
            assert!(!has_rules().expect("readable"), "a table with another name");
            run("nft", "add table ip6 kube-proxy");
            run("nft", "add chain ip6 kube-proxy services");
            assert!(has_rules().expect("readable"), "nftables mode");
        };
        std::thread::spawn(test).join().expect("the test passes");
    }
}
