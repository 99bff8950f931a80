//! skbs. Headers are written in place; transport checksums are changed only through
//! `bpf_l4_csum_replace`, because the helper distinguishes checksums that are complete, partial, or
//! verified by the device.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_head, bpf_skb_change_tail,
    bpf_skb_pull_data, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use lb_common::checksum::fold;
use lb_common::family::Family;
use lb_common::wire::ETHERNET_LEN;

use super::{Frame, RememberedLink};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16 and stable kernels): leaves a complete
/// checksum alone. In an IPv6 packet the change of the addresses and that of the transport checksum
/// cancel each other out.
const BPF_F_IPV6: u64 = 1 << 7;

/// The bits of the VLAN id in a tag (`VLAN_VID_MASK`).
const VLAN_ID: u32 = 0xfff;

/// Headers within this many bytes are made linear before they are parsed.
const LINEAR: u32 = 128;

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the loopback device has this index in every network
/// namespace.
pub const LOOPBACK: u32 = 1;

/// Values of `pkt_type` (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// The receiver of a frame, by its destination MAC address.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Receiver {
    /// The device that the frame is on.
    Device,
    /// Another host. A switch has flooded the frame, or the device is a port of a bridge.
    OtherHost,
    /// A broadcast or multicast group.
    Many,
}

pub struct SkbFrame(TcContext);

impl SkbFrame {
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self(TcContext::new(skb))
    }

    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }

    /// Returns the VLAN id of the tag that is stored in the skb. The kernel has removed that tag
    /// from the bytes, or will add it.
    #[inline(always)]
    pub fn vlan(&self) -> Option<u32> {
        // SAFETY: context fields, always readable.
        let (present, tag) = unsafe { ((*self.skb()).vlan_present, (*self.skb()).vlan_tci) };
        (present != 0).then_some(tag & VLAN_ID)
    }

    /// Removes the tag that is stored in the skb. If the bytes begin with another tag, that one is
    /// then stored.
    #[inline(always)]
    pub fn pop_vlan(&self) -> Option<()> {
        // SAFETY: the helper has no preconditions; packet pointers are read again after it.
        succeeded(unsafe { bpf_skb_vlan_pop(self.skb()) } as i64)
    }

    /// Returns the receiver of the frame according to its destination MAC address.
    #[inline(always)]
    pub fn receiver(&self) -> Receiver {
        // SAFETY: a context field, always readable.
        match unsafe { (*self.skb()).pkt_type } {
            PACKET_HOST => Receiver::Device,
            PACKET_OTHERHOST => Receiver::OtherHost,
            _ => Receiver::Many,
        }
    }

    /// Returns the EtherType that the kernel has found, in host order.
    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        // SAFETY: a context field, always readable.
        u16::from_be(unsafe { (*self.skb()).protocol } as u16)
    }

    /// Makes the headers readable in place when the driver left them in page fragments.
    #[inline(always)]
    pub fn linearize(&self) {
        let length = self.0.len();
        let linear = self.data_end() - self.data();
        if linear < LINEAR as usize && (linear as u32) < length {
            // On failure only the linear part is parsed, and the packet is passed on untouched.
            // SAFETY: the helper checks the length; packet pointers are read again after it.
            unsafe { bpf_skb_pull_data(self.skb(), if length < LINEAR { length } else { LINEAR }) };
        }
    }

    /// Cuts or extends the packet at its end, to `length` bytes.
    #[inline(always)]
    pub fn set_length(&self, length: usize) -> Option<()> {
        // SAFETY: the helper checks the length; packet pointers are read again after it.
        succeeded(unsafe { bpf_skb_change_tail(self.skb(), length as u32, 0) } as i64)
    }

    /// Adds `bytes` bytes in front of the packet.
    #[inline(always)]
    pub fn grow_head(&self, bytes: usize) -> Option<()> {
        // SAFETY: the helper checks the length; packet pointers are read again after it.
        succeeded(unsafe { bpf_skb_change_head(self.skb(), bytes as u32, 0) } as i64)
    }

    /// Applies `difference` to the transport checksum at `offset`.
    #[inline(always)]
    fn replace_checksum(&self, offset: usize, difference: u64, flags: u64) -> i64 {
        // SAFETY: the helper checks the offset; packet pointers are read again after it.
        unsafe { bpf_l4_csum_replace(self.skb(), offset as u32, 0, difference, flags) as i64 }
    }

    /// Adds `pseudo`, an unfolded sum, to the pseudo-header that the checksum at `offset` covers,
    /// and `data` to the rest.
    #[inline(always)]
    pub fn add_to_checksum(&self, offset: usize, pseudo: u64, data: u64) -> Option<()> {
        succeeded(self.replace_checksum(offset, fold(pseudo) as u64, BPF_F_PSEUDO_HDR as u64))?;
        succeeded(self.replace_checksum(offset, fold(data) as u64, 0))
    }

    /// Returns the content of the checksum field at `offset` if the sender left the checksum to the
    /// device (`CHECKSUM_PARTIAL`), else `Some(None)`. Returns `None` if the field cannot be
    /// written.
    ///
    /// A program cannot read the state of the checksum, but `bpf_l4_csum_replace` uses it: the
    /// helper leaves a partial checksum unchanged when something outside the pseudo-header changes.
    #[inline(always)]
    pub fn partial_checksum(&self, offset: usize) -> Option<Option<u16>> {
        let before = self.load::<u16>(offset)?;
        succeeded(self.replace_checksum(offset, 1, 0))?;
        let after = self.load::<u16>(offset)?;
        self.store(offset, before)?;
        Some(if before == after { Some(before) } else { None })
    }

    /// Sends the packet out of the device that it is on, and returns the action.
    #[inline(always)]
    pub fn send_out(&self) -> i32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_redirect(self.ifindex(), 0) as i32 }
    }

    /// Makes the packet, whose IP header is at `l3`, arrive by the loopback device, and returns the
    /// action. From there the kernel forwards it, also with a source of this node: for that the
    /// agent has set `accept_local` on this device. On any other device it would be a martian.
    #[inline(always)]
    pub fn receive_by_loopback(&self, l3: usize) -> Option<i32> {
        if l3 < ETHERNET_LEN {
            self.grow_head(ETHERNET_LEN)?;
            self.store(6, [0u8; 6])?;
            self.store(12, self.ethertype().to_be())?;
        }
        // The address of the loopback device: the frame is for this host (`eth_type_trans`).
        self.store(0, [0u8; 6])?;
        // SAFETY: the helper has no preconditions.
        Some(unsafe { bpf_redirect(LOOPBACK, BPF_F_INGRESS as u64) } as i32)
    }

    /// Makes the packet arrive by the device that it is on, and returns the action.
    #[inline(always)]
    pub fn receive(&self) -> i32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_redirect(self.ifindex(), BPF_F_INGRESS as u64) as i32 }
    }
}

#[inline(always)]
fn succeeded(result: i64) -> Option<()> {
    if result == 0 { Some(()) } else { None }
}

impl Frame for SkbFrame {
    const COMPLETE: bool = true;

    accessors!();

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a context field, always readable.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        // SAFETY: a context field, always readable (Linux 5.7).
        unsafe { (*self.skb()).gso_size as usize }
    }

    #[inline(always)]
    fn came_back(&self) -> bool {
        // SAFETY: context fields, always readable.
        unsafe { (*self.skb()).ingress_ifindex == (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn reaches(&self, end: usize) -> bool {
        end <= self.0.len() as usize
    }

    #[inline(always)]
    fn is_addressed_to_remembered(&self, _remembered: &mut RememberedLink, _now: u64) -> bool {
        true
    }

    #[inline(always)]
    fn is_addressed_to(&self, _addr: [u8; 6]) -> bool {
        true
    }

    #[inline(always)]
    fn update_checksum<F: Family>(
        &self,
        offset: usize,
        is_udp: bool,
        addresses: u64,
        data: u64,
    ) -> Option<()> {
        let udp = if is_udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let addresses = fold(addresses) as u64;
        let pseudo = BPF_F_PSEUDO_HDR as u64 | udp;
        let mut failed = if F::IS_V6 {
            let mut result = self.replace_checksum(offset, addresses, pseudo | BPF_F_IPV6);
            if result != 0 {
                // A kernel without the flag wrongly subtracts the difference from a complete
                // checksum: add it again.
                result = self.replace_checksum(offset, addresses, pseudo);
                // SAFETY: the helper has no preconditions; it fails, as intended, where the
                // checksum is not complete.
                unsafe { bpf_csum_update(self.skb(), addresses as u32) };
            }
            result
        } else {
            self.replace_checksum(offset, addresses, pseudo)
        };
        failed |= self.replace_checksum(offset, fold(data) as u64, udp);
        succeeded(failed)
    }
}
