//! Random numbers that decide about endpoints and canaries. They are no secrets.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
}

/// Returns the next number (xorshift64*, Vigna 2016).
pub fn next() -> u64 {
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

/// Returns a number below `bound`.
pub fn below(bound: u32) -> u32 {
    u32::try_from((u64::from(bound) * (next() >> 32)) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_below_their_bound_and_spread() {
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            counts[super::below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        assert_eq!(super::below(1), 0);
    }
}
