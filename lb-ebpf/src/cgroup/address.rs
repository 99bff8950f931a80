//! The address fields of `struct bpf_sock_addr` (network byte order), in the three forms that
//! sockets use.

use aya_ebpf::programs::SockAddrContext;
use lb_common::family::{Family, V4, V6};

/// The fifth and sixth word of an IPv4-mapped IPv6 address: `::ffff:0:0/96` (RFC 4291 2.5.5.2), in
/// network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// Returns the port of the call, in host byte order.
#[inline(always)]
pub fn port(context: &SockAddrContext) -> u16 {
    // SAFETY: a context field, always readable. Its low 16 bits are the port in network order.
    u16::from_be(unsafe { (*context.sock_addr).user_port } as u16)
}

/// Writes the port of the call, given in host byte order.
#[inline(always)]
pub fn set_port(context: &SockAddrContext, port: u16) {
    // SAFETY: a context field that these programs may write.
    unsafe { (*context.sock_addr).user_port = port.to_be() as u32 }
}

#[inline(always)]
fn words(context: &SockAddrContext) -> [u32; 4] {
    // SAFETY: only the address of a context field is taken.
    let field = unsafe { &raw const (*context.sock_addr).user_ip6 }.cast::<u32>();
    // SAFETY: context fields, always readable in IPv6 programs, word by word.
    unsafe {
        [
            field.read_volatile(),
            field.add(1).read_volatile(),
            field.add(2).read_volatile(),
            field.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
fn set_words(context: &SockAddrContext, words: [u32; 4]) {
    // SAFETY: only the address of a context field is taken.
    let field = unsafe { &raw mut (*context.sock_addr).user_ip6 }.cast::<u32>();
    // SAFETY: context fields that IPv6 programs may write, word by word.
    unsafe {
        field.write_volatile(words[0]);
        field.add(1).write_volatile(words[1]);
        field.add(2).write_volatile(words[2]);
        field.add(3).write_volatile(words[3]);
    }
}

/// Returns whether an IPv6 socket's address is IPv4-mapped.
#[inline(always)]
pub fn is_mapped(context: &SockAddrContext) -> bool {
    let [a, b, c, _] = words(context);
    a == 0 && b == 0 && c == MAPPED
}

/// The address of a call as 16 bytes, in the socket's own family; an IPv4 address is the first
/// four.
pub trait Wide {
    /// Whether the socket is an IPv6 socket.
    const IS_V6: bool;
    fn wide(context: &SockAddrContext) -> [u8; 16];
    fn set_wide(context: &SockAddrContext, addr: &[u8; 16]);
}

/// The address of a call as an address of family `F`.
pub trait SocketAddress<F: Family>: Wide {
    fn address(context: &SockAddrContext) -> F::Addr;
    fn set_address(context: &SockAddrContext, addr: F::Addr);
    /// Converts an address to the form of [`Wide::wide`].
    fn widen(addr: &F::Addr) -> [u8; 16];
}

/// An IPv4 socket.
pub struct In4;
/// An IPv6 socket with an IPv6 address.
pub struct In6;
/// An IPv6 socket with an IPv4-mapped address.
pub struct Mapped;

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // Two halves: no store of eight bytes crosses their border, and the stack allows aligned access
    // only.
    let halves = [words[0] as u64 | (words[1] as u64) << 32, words[2] as u64 | (words[3] as u64) << 32];
    // SAFETY: both types have the same size and take any bytes. The programs run on little-endian
    // machines (bpfel).
    unsafe { core::mem::transmute(halves) }
}

#[inline(always)]
fn from_bytes(bytes: [u8; 16]) -> [u32; 4] {
    // SAFETY: both types have the same size and take any bytes.
    unsafe { core::mem::transmute(bytes) }
}

impl Wide for In4 {
    const IS_V6: bool = false;

    #[inline(always)]
    fn wide(context: &SockAddrContext) -> [u8; 16] {
        Self::widen(&Self::address(context))
    }

    #[inline(always)]
    fn set_wide(context: &SockAddrContext, addr: &[u8; 16]) {
        Self::set_address(context, [addr[0], addr[1], addr[2], addr[3]]);
    }
}

impl SocketAddress<V4> for In4 {
    #[inline(always)]
    fn address(context: &SockAddrContext) -> [u8; 4] {
        // SAFETY: a context field, always readable in IPv4 programs.
        unsafe { (*context.sock_addr).user_ip4 }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, addr: [u8; 4]) {
        // SAFETY: a context field that IPv4 programs may write.
        unsafe { (*context.sock_addr).user_ip4 = u32::from_ne_bytes(addr) }
    }

    #[inline(always)]
    fn widen(addr: &[u8; 4]) -> [u8; 16] {
        bytes([u32::from_ne_bytes(*addr), 0, 0, 0])
    }
}

impl Wide for In6 {
    const IS_V6: bool = true;

    #[inline(always)]
    fn wide(context: &SockAddrContext) -> [u8; 16] {
        bytes(words(context))
    }

    #[inline(always)]
    fn set_wide(context: &SockAddrContext, addr: &[u8; 16]) {
        set_words(context, from_bytes(*addr));
    }
}

impl SocketAddress<V6> for In6 {
    #[inline(always)]
    fn address(context: &SockAddrContext) -> [u8; 16] {
        Self::wide(context)
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, addr: [u8; 16]) {
        Self::set_wide(context, &addr);
    }

    #[inline(always)]
    fn widen(addr: &[u8; 16]) -> [u8; 16] {
        *addr
    }
}

impl Wide for Mapped {
    const IS_V6: bool = true;

    #[inline(always)]
    fn wide(context: &SockAddrContext) -> [u8; 16] {
        In6::wide(context)
    }

    #[inline(always)]
    fn set_wide(context: &SockAddrContext, addr: &[u8; 16]) {
        In6::set_wide(context, addr);
    }
}

impl SocketAddress<V4> for Mapped {
    #[inline(always)]
    fn address(context: &SockAddrContext) -> [u8; 4] {
        words(context)[3].to_ne_bytes()
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, addr: [u8; 4]) {
        set_words(context, [0, 0, MAPPED, u32::from_ne_bytes(addr)]);
    }

    #[inline(always)]
    fn widen(addr: &[u8; 4]) -> [u8; 16] {
        bytes([0, 0, MAPPED, u32::from_ne_bytes(*addr)])
    }
}
