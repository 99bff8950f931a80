//! The packet that `lb explain` runs through the programs: its bytes, and where it comes from.

pub mod origin;
pub mod packet;
