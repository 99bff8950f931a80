//! `lb`: the agent and the tools around it.
fn main() {}
