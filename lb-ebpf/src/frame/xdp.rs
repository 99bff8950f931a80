//! XDP frames: bytes are read and written in place, checksums are updated by arithmetic.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{update, update_udp};
use lb_common::family::Family;

use super::{Frame, RememberedLink};
use crate::clock::REMEMBER_NS;
use crate::maps::LINK_ADDRESSES;
use crate::settings::HAS_XDP_FRAGS;

pub struct XdpFrame(pub XdpContext);

impl Frame for XdpFrame {
    const COMPLETE: bool = false;

    accessors!();

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        0
    }

    #[inline(always)]
    fn came_back(&self) -> bool {
        false
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        if end <= self.data_end() - self.data() {
            return true;
        }
        // SAFETY: the helper has no preconditions; it is not reached on kernels without it.
        HAS_XDP_FRAGS.load() != 0 && end as u64 <= unsafe { bpf_xdp_get_buff_len(self.0.ctx) }
    }

    #[inline(always)]
    fn is_addressed_to_remembered(&self, remembered: &mut RememberedLink, now: u64) -> bool {
        let ifindex = self.ifindex();
        if remembered.ifindex != ifindex || remembered.expires_ns <= now {
            // SAFETY: the address is copied. If the element is reused by another device meanwhile,
            // packets pass on to tc, which has the kernel's own check, until the next lookup.
            let Some(link) = (unsafe { LINK_ADDRESSES.get(&ifindex) }) else { return true };
            (remembered.ifindex, remembered.addr) = (ifindex, link.addr);
            remembered.expires_ns = now + REMEMBER_NS;
        }
        self.is_addressed_to(remembered.addr)
    }

    #[inline(always)]
    fn is_addressed_to(&self, addr: [u8; 6]) -> bool {
        self.load::<[u8; 6]>(0).is_some_and(|destination| destination == addr)
    }

    #[inline(always)]
    fn update_checksum<F: Family>(
        &self,
        offset: usize,
        is_udp: bool,
        addresses: u64,
        data: u64,
    ) -> Option<()> {
        let old = self.load::<u16>(offset)?;
        let new = if !is_udp {
            update(old, addresses + data)
        } else if old == 0 {
            0 // the sender computed none (RFC 768; RFC 6935 for IPv6 tunnels)
        } else {
            update_udp(old, addresses + data)
        };
        self.store::<u16>(offset, new)
    }
}
