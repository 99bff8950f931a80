//! `lb` with another layout of the map entries. The end-to-end tests replace an agent of one layout
//! by one of the other.

#[path = "../main.rs"]
mod program;

use std::process::ExitCode;

fn main() -> ExitCode {
    program::main()
}
