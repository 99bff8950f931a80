//! Lists objects of the kernel by netlink, as bytes.

use std::convert::Infallible;
use std::io;

use lb_datapath::netlink::NetlinkSocket;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use rustix::net::Protocol;

/// A message of any protocol. The header is not part of the body.
struct RawMessage {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for RawMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for RawMessage {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, body: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: body.to_owned() })
    }
}

impl From<RawMessage> for NetlinkPayload<RawMessage> {
    fn from(message: RawMessage) -> Self {
        Self::InnerMessage(message)
    }
}

/// Sends a list request of this type, and calls `visit` with the body of each answer. A kernel that
/// does not support such requests has no objects.
pub fn dump(protocol: Protocol, request: u16, body: &[u8], mut visit: impl FnMut(&[u8])) -> io::Result<()> {
    let netlink = match NetlinkSocket::open(Some(protocol)) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(()),
        netlink => netlink?,
    };
    netlink.send(NLM_F_DUMP, RawMessage { kind: request, body: body.to_owned() })?;
    match netlink.receive(|answer: RawMessage| visit(&answer.body)) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT | libc::EPROTONOSUPPORT)
    )
}
