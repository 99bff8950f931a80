//! Lists objects of the kernel by netlink.

use std::io;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, send, socket};

/// Size of the receive buffer. The kernel sends lists in messages of at most 32 KiB.
const BUFFER: usize = 65536;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Sends a list request of this type, and calls `visit` with the body of each answer. A kernel that
/// does not support such requests has no objects.
pub fn dump(protocol: Protocol, request: u16, body: &[u8], mut visit: impl FnMut(&[u8])) -> io::Result<()> {
    let netlink = match socket(AddressFamily::NETLINK, SocketType::RAW, Some(protocol)) {
        Err(rustix::io::Errno::PROTONOSUPPORT) => return Ok(()),
        netlink => netlink?,
    };
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend((HEADER as u32 + body.len() as u32).to_ne_bytes());
    bytes.extend(request.to_ne_bytes());
    bytes.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    send(&netlink, &bytes, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (_, length) = recv(&netlink, &mut buffer[..], RecvFlags::TRUNC)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while let Some((length, kind, body)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return error_of(body),
                _ => visit(body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Returns length, type and body of the first message.
fn message(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((length, kind, bytes.get(HEADER..length)?))
}

/// Returns the error in an error message. A kernel that does not support the request has nothing to
/// list.
fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk().map_or(libc::EINVAL, |code| -i32::from_ne_bytes(*code));
    match code {
        0 | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT | libc::EPROTONOSUPPORT => Ok(()),
        _ => Err(io::Error::from_raw_os_error(code)),
    }
}
