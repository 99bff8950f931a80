//! The name of a NIC's driver.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GDRVINFO` of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// Reads driver names by ioctl. The socket belongs to the network namespace of the caller.
/// `/sys/class/net` may show another namespace, so it is not used. The netlink interface of ethtool
/// has no message for the driver's name.
pub struct Drivers(OwnedFd);

impl Drivers {
    pub fn open() -> std::io::Result<Self> {
        Ok(Self(socket(AddressFamily::INET, SocketType::DGRAM, None)?))
    }

    /// Returns the driver of a device. `None` if there is no such device, or if its driver does not
    /// report a name.
    pub fn of(&self, device: &str) -> Option<String> {
        let mut info = DriverInfo {
            cmd: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware_version: [0; 32],
            bus_info: [0; 32],
            rom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        // SAFETY: an all-zero ifreq is valid: it is plain bytes, integers and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero: the name is terminated.
        let room = request.ifr_name.len() - 1;
        if device.len() > room {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        // SAFETY: the kernel reads the name, and writes at most one struct ethtool_drvinfo to
        // ifru_data. That points to `info`, which has this layout (its size is asserted above) and
        // lives until after the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL as libc::Ioctl, &raw mut request) };
        if result < 0 {
            return None;
        }
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        let name = std::str::from_utf8(&info.driver[..end]).ok()?;
        (!name.is_empty()).then(|| name.to_owned())
    }
}
