//! Alignment on the stack.

/// A value that starts at a multiple of eight bytes. The programs are compiled for misaligned access, which the verifier
/// allows in packets and map values but not on the stack: what is built there and holds an address is wrapped in this.
#[repr(C, align(8))]
pub struct Aligned<T>(pub T);
