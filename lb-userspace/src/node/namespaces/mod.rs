//! The network namespaces of this node: its own, and those of its pods.
//!
//! * `list`: finds them and runs code in them. containerd and CRI-O bind-mount the namespace of
//!   each pod in a folder, as `ip netns` does; other namespaces are found by their processes.
//! * `changes`: receives notifications about the addresses in them.
//! * [`follow`]: watches them and the addresses in them.
//!
//! **Invariant:** no namespace is kept open. Devices and addresses of a pod that has ended would
//! stay as long as its namespace is open.

mod changes;
pub mod follow;
mod list;
