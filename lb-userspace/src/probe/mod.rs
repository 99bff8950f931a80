//! The packet that `lb explain` runs through the programs: its bytes and its origin.

pub mod origin;
pub mod packet;
