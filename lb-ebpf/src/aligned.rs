//! Values on the stack that the verifier accepts.

/// A value that starts at a multiple of eight bytes. The programs are compiled for misaligned
/// access, which the verifier allows in packets and map values but not on the stack. So a value
/// with an address that is built on the stack is wrapped in this type.
#[repr(C, align(8))]
pub struct Aligned<T>(pub T);
