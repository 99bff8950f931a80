//! Lists the tc filters of a device (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

/// Size of the receive buffer. The kernel sends lists in messages of at most 32 KiB.
const BUFFER: usize = 65536;

/// A filter on a clsact queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcFilter {
    pub ingress: bool,
    /// The priority in the upper half, the protocol in the lower half (`tcm_info`).
    pub info: u32,
    /// Identifies the filter among those of its priority.
    pub handle: u32,
    /// The BPF program that the filter runs. `None` for a filter of another kind.
    pub program: Option<FilterProgram>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterProgram {
    pub id: u32,
    pub name: String,
}

impl TcFilter {
    pub fn priority(&self) -> u16 {
        (self.info >> 16) as u16
    }
}

/// Returns the filters of a device at ingress or egress, in the order in which they run. A device
/// without clsact has none.
pub fn tc_filters(ifindex: u32, ingress: bool) -> io::Result<Vec<TcFilter>> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let minor = if ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
    // The default protocol is NETLINK_ROUTE.
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut request = TcMessage::default();
    request.header.index = index;
    request.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
    send_request(&netlink, RouteNetlinkMessage::GetTrafficFilter(request))?;
    let mut filters = Vec::new();
    receive(&netlink, |message| filters.extend(filter(&message, ingress)))?;
    Ok(filters)
}

/// Returns `None` for the head of a list of filters, which has no handle.
fn filter(message: &TcMessage, ingress: bool) -> Option<TcFilter> {
    let handle = u32::from(message.header.handle);
    (handle != 0).then(|| TcFilter { ingress, info: message.header.info, handle, program: program(message) })
}

fn program(message: &TcMessage) -> Option<FilterProgram> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let name = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })?;
    let id = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(FilterProgram { id: id.unwrap_or(0), name })
}

/// Sends a request for a list. There is only one at a time, so it needs no sequence number.
fn send_request(netlink: &OwnedFd, request: RouteNetlinkMessage) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(netlink, &bytes, SendFlags::empty())?;
    Ok(())
}

/// Receives a list, and passes its messages to `handle`.
fn receive(netlink: &OwnedFd, mut handle: impl FnMut(TcMessage)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        // With TRUNC the length is that of the datagram, also if the buffer is too small for it.
        let (_, length) = recv(netlink, &mut buffer[..], RecvFlags::TRUNC)?;
        let mut rest = buffer.get(..length).ok_or_else(|| io::Error::other("a truncated list of filters"))?;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?.length() as usize;
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(message)) => {
                    handle(message);
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_have_program_and_priority() {
        let mut message = TcMessage::default();
        message.header.handle = TcHandle { major: 0x534c, minor: 0x4345 };
        message.header.info = 1 << 16 | 0x0300;
        message.attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgName("lb_tc_ingress".into())),
                TcOption::Bpf(TcFilterBpfOption::ProgId(7)),
            ]),
        ];
        let found = filter(&message, true).expect("it has a handle");
        assert_eq!((found.priority(), found.handle), (1, 0x534c_4345));
        assert_eq!(found.program, Some(FilterProgram { id: 7, name: "lb_tc_ingress".into() }));
        assert_eq!(filter(&TcMessage::default(), true), None);
    }

    #[test]
    fn the_loopback_device_has_no_filter() {
        assert_eq!(tc_filters(1, true).expect("listed"), []);
    }
}
