//! Requests to the kernel by netlink(7), without tokio. A socket belongs to the network namespace
//! of the thread that creates it, so code that enters namespaces must stay in its thread.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, send, socket};

/// Size of the receive buffer. The kernel sends lists in messages of at most 32 KiB.
const BUFFER: usize = 65536;

/// A socket for one request at a time, which therefore needs no sequence number.
#[derive(Debug)]
pub struct NetlinkSocket(OwnedFd);

impl NetlinkSocket {
    /// `None` as protocol is NETLINK_ROUTE.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::NETLINK, SocketType::RAW, protocol)?))
    }

    /// Sends a request. `flags` are added to NLM_F_REQUEST.
    pub fn send<M>(&self, flags: u16, request: M) -> io::Result<()>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Receives the answer to a request, and passes its messages to `handle` until the answer is
    /// complete.
    ///
    /// # Errors
    /// The error that the kernel answers, or `InvalidData` for a malformed answer.
    pub fn receive<M: NetlinkDeserializable>(&self, mut handle: impl FnMut(M)) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            // With TRUNC the length is that of the datagram, even if the buffer is too small.
            let (_, length) = recv(&self.0, &mut buffer[..], RecvFlags::TRUNC)?;
            let mut rest = buffer.get(..length).ok_or_else(malformed)?;
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?.length() as usize;
                let message = NetlinkMessage::<M>::deserialize(rest).map_err(|_| malformed())?;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => handle(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    // An error without a code is the acknowledgement of a request.
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
                // Messages begin at multiples of four bytes.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message from the kernel")
}
