//! Settings that decide to which devices programs are attached.

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    pub patterns: DevicePatterns,
    pub pods: PodInterfaces,
    pub mode: AttachMode,
}

/// Option `--devices`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DevicePatterns {
    #[default]
    Auto,
    /// Names with `*` and `?`. Every device that matches one of them is attached to.
    Globs(Vec<String>),
}

/// Option `--pod-interfaces`: names with `*` and `?`. A device that matches one of them leads to a
/// pod, also if it matches `--devices`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodInterfaces(pub Vec<String>);

/// Option `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// XDP where it is known to be correct, tc elsewhere.
    #[default]
    Auto,
    /// XDP on every device with native support.
    Xdp,
    /// tc on every device.
    Tc,
}
