//! What another program has changed in the kernel: attachments, pins and map entries.

/// The kind of a difference between the kernel's state and the desired one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftKind {
    /// The XDP program of a device is not attached.
    Xdp,
    /// A tc program of a device is not attached.
    Tc,
    /// The program of another owner runs before a tc program.
    TcOrder,
    /// A socket program is not attached to the cgroup.
    Socket,
    /// The pin of a map is missing, or leads to another object.
    Pin,
    /// A map entry differs, is missing, or was added.
    MapEntry,
}

impl DriftKind {
    pub const ALL: [Self; 6] = [Self::Xdp, Self::Tc, Self::TcOrder, Self::Socket, Self::Pin, Self::MapEntry];

    /// Returns the value of the label `kind` of the metric `sluice_repairs_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::TcOrder => "tc_order",
            Self::Socket => "socket",
            Self::Pin => "pin",
            Self::MapEntry => "map_entry",
        }
    }
}

/// A difference between the kernel's state and the desired one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    pub kind: DriftKind,
    /// What was found, for the log.
    pub found: String,
}

impl Drift {
    pub fn new(kind: DriftKind, found: impl Into<String>) -> Self {
        Self { kind, found: found.into() }
    }
}
