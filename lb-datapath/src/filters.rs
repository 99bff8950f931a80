//! Lists the tc filters of a device (rtnetlink(7)).

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use crate::netlink::NetlinkSocket;

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
    let mut request = TcMessage::default();
    request.header.index = index;
    request.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
    let netlink = NetlinkSocket::open(None)?;
    netlink.send(NLM_F_DUMP, RouteNetlinkMessage::GetTrafficFilter(request))?;
    let mut filters = Vec::new();
    netlink.receive(|message| {
        if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
            filters.extend(filter(&message, ingress));
        }
    })?;
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
