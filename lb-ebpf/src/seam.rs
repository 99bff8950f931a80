//! Seams between the stages of a program, for the verifier.

/// Returns the same reference to a map value. After this call the compiler reads the value from the
/// map again, instead of keeping parts of it in registers.
///
/// The verifier follows a program path by path. It tracks the content of registers and of the
/// stack, but not that of maps. After a seam all paths look the same to it, so it checks the
/// following code once and not once for each path.
#[inline(always)]
pub fn forget<T>(value: &mut T) -> &mut T {
    let mut pointer: *mut T = value;
    // SAFETY: one instruction that copies its operand to itself. The compiler assumes that it reads
    // and writes memory.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(nostack, preserves_flags)) };
    // SAFETY: the pointer is that of the reference, which the caller gave away.
    unsafe { &mut *pointer }
}

/// Returns the same number. The verifier tracks no bounds of the result.
#[inline(always)]
pub fn unknown(number: u64) -> u64 {
    lb_number(number)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_number(mut number: u64) -> u64 {
    // SAFETY: one instruction that copies its operand to itself. The compiler cannot see that the
    // result is the argument.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}
