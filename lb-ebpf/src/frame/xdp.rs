//! XDP frames: bytes are read and written in place, checksums are updated by arithmetic.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{update, update_udp};
use lb_common::family::Family;

use super::Frame;

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
