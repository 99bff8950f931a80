//! Types that are copied to and from packets and map entries byte by byte. This is the only module
//! of this crate with `unsafe`.

/// A type whose bytes are all initialized, and for which any bytes are a valid value.
///
/// # Safety
/// The type has no padding, and no field that is a reference, a pointer, an enum, a `bool` or a
/// `char`. The macro [`plain!`](crate::plain!) implements the trait for a structure and proves that
/// at compile time.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! numbers {
    ($($number:ty),*) => { $(
        // SAFETY: a number.
        unsafe impl Plain for $number {}
    )* };
}

numbers!(u8, u16, u32, u64);

// SAFETY: an array has no padding between its elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Returns the size of a field, given by a function that borrows it. Used by
/// [`plain!`](crate::plain!).
pub const fn size_of_field<T, F: Plain>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// An address of one family in network byte order. `[u8; 4]` and `[u8; 16]` implement it, no other
/// type.
pub trait AddressBytes: Plain + sealed::Sealed {}

impl AddressBytes for [u8; 4] {}
impl AddressBytes for [u8; 16] {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for [u8; 4] {}
    impl Sealed for [u8; 16] {}
}

/// Proves that structures may be [`Plain`]: `assert_plain! { Name { field, field } }`. Every field
/// must be listed and be [`Plain`]. A structure that is larger than its fields is an error.
#[macro_export]
macro_rules! assert_plain {
    ($($type:ty { $($field:ident),+ $(,)? })*) => { $(
        const _: () = assert!(
            0 $(+ $crate::plain::size_of_field(|value: &$type| &value.$field))+ == size_of::<$type>(),
            concat!(stringify!($type), " has padding, or not all of its fields are listed"),
        );
    )* };
}

/// Implements [`Plain`] for structures, as [`assert_plain!`](crate::assert_plain!) proves it.
#[macro_export]
macro_rules! plain {
    ($($type:ty { $($field:ident),+ $(,)? })*) => { $(
        $crate::assert_plain! { $type { $($field),+ } }
        // SAFETY: every field is Plain, and their sizes add up to that of the structure.
        unsafe impl $crate::plain::Plain for $type {}
    )* };
}
