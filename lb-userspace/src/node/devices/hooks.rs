//! The hooks of devices.

use std::fmt;

/// The hooks of a device that programs are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// XDP, and tc for packets that XDP passes on and for replies that leave. If XDP cannot be
    /// attached, tc alone is correct too.
    XdpAndTc,
    Tc,
    None,
}

impl fmt::Display for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XdpAndTc => "XDP and tc",
            Self::Tc => "tc",
            Self::None => "nothing",
        })
    }
}
