//! Architectures of the emulated machines, with the names and options that each needs.

use clap::ValueEnum;

/// The processor has every feature that QEMU emulates, except fast `rep movsb` and `rep stosb`.
/// Where a processor has these, kernels copy and clear memory with them. QEMU emulates them byte by
/// byte, and loading the programs then takes twice as long.
const X86_64: &str = "max,-erms,-fsrm,-fsrs,-fsrc,-fzrm";

/// The architecture of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// The architecture of this machine: guests use its files
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// Guests use Debian's files for arm64, and programs that are cross-compiled
    Aarch64,
}

impl Arch {
    /// Returns Debian's name of the architecture.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Returns the name of the emulator.
    pub fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Returns Debian's packages with the emulator and its data.
    pub fn qemu_packages(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"],
            Self::Aarch64 => &["qemu-system-arm", "qemu-system-common", "qemu-system-data"],
        }
    }

    /// Returns the options of the emulator that choose the machine and the processor.
    pub fn machine(self) -> [&'static str; 4] {
        match self {
            Self::X86_64 => ["-machine", "pc,memory-backend=memory", "-cpu", X86_64],
            // Pointer authentication, which `max` has, is slow under emulation.
            Self::Aarch64 => ["-machine", "virt,memory-backend=memory", "-cpu", "neoverse-n1"],
        }
    }

    /// Returns the options of the kernel that belong to the machine. Features that only cost time
    /// under emulation are off.
    pub fn kernel_options(self) -> &'static str {
        match self {
            Self::X86_64 => "console=ttyS0 no5lvl tsc=reliable",
            Self::Aarch64 => "console=ttyAMA0",
        }
    }

    /// Returns whether the machine has four serial ports by default. Otherwise it has one, and the
    /// ports of the task are on a PCI card.
    pub fn has_serial_ports(self) -> bool {
        self == Self::X86_64
    }

    /// Returns the factor by which the time limits of the testbed are longer in a guest.
    pub fn patience(self) -> &'static str {
        match self {
            Self::X86_64 => "4",
            Self::Aarch64 => "12",
        }
    }

    /// Returns the name of a folder in the cache for this architecture.
    pub fn folder(self, name: &str) -> String {
        match self {
            Self::X86_64 => name.to_owned(),
            Self::Aarch64 => format!("{name}-{}", self.debian()),
        }
    }
}
