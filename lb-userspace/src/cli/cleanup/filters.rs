//! Removes tc filters and clsact queueing disciplines, through rtnetlink.

use std::fmt;
use std::io;

use futures::{StreamExt, TryStreamExt};
use lb_datapath::attachments::{TcFilter, tc_filters};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage};

/// The prefix of the names of all tc programs of Sluice.
const PROGRAM_PREFIX: &str = "lb_tc_";

/// A tc filter that runs a program of Sluice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SluiceFilter {
    device: String,
    program: String,
    /// Device, direction, priority and handle. The kernel needs these to remove the filter.
    header: TcHeader,
}

impl fmt::Display for SluiceFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.header.parent.minor == TcHandle::MIN_EGRESS { "egress" } else { "ingress" };
        write!(f, "{} on {} ({direction})", self.program, self.device)
    }
}

/// A clsact queueing discipline that holds only filters of Sluice. An agent created it, or no other
/// program uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qdisc {
    device: String,
    index: i32,
}

impl fmt::Display for Qdisc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clsact on {}", self.device)
    }
}

pub(crate) struct Netlink(Handle);

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub fn handle(&self) -> &Handle {
        &self.0
    }

    /// Returns the filters and queueing disciplines of Sluice on the devices of this network
    /// namespace. Filters must be removed before queueing disciplines.
    pub(super) async fn list(&self) -> io::Result<(Vec<SluiceFilter>, Vec<Qdisc>)> {
        let (mut filters, mut qdiscs) = (Vec::new(), Vec::new());
        let mut links = self.0.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
            let Ok(index) = i32::try_from(link.header.index) else { continue };
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let device = name.unwrap_or_else(|| format!("interface {index}"));
            let mut all = Vec::new();
            for ingress in [true, false] {
                // The kernel returns an error for a device that was removed in the meantime.
                all.extend(tc_filters(link.header.index, ingress).unwrap_or_default());
            }
            let sluice = sluice_filters(&device, index, &all);
            if !sluice.is_empty() && sluice.len() == all.len() {
                qdiscs.push(Qdisc { device, index });
            }
            filters.extend(sluice);
        }
        Ok((filters, qdiscs))
    }

    /// Removes a clsact queueing discipline. Its filters must be removed already.
    pub(super) async fn remove_qdisc(&self, qdisc: &Qdisc) -> io::Result<()> {
        let mut request = self.0.qdisc().del(qdisc.index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.execute().await.map_err(io::Error::other)
    }

    /// Removes a filter.
    pub(super) async fn remove(&self, filter: &SluiceFilter) -> io::Result<()> {
        let mut message = TcMessage::default();
        message.header = filter.header.clone();
        message.attributes.push(TcAttribute::Kind("bpf".into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut replies = self.0.clone().request(request).map_err(io::Error::other)?;
        while let Some(reply) = replies.next().await {
            if let NetlinkPayload::Error(error) = reply.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

/// Returns those of the filters of a device that run a program of Sluice.
fn sluice_filters(device: &str, index: i32, filters: &[TcFilter]) -> Vec<SluiceFilter> {
    let own = |filter: &TcFilter| {
        let program = filter.program.as_ref().filter(|program| program.name.starts_with(PROGRAM_PREFIX))?;
        let header = TcHeader {
            index,
            handle: filter.handle.into(),
            parent: TcHandle {
                major: TcHandle::CLSACT.major,
                minor: if filter.ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS },
            },
            info: filter.info,
            ..TcHeader::default()
        };
        Some(SluiceFilter { device: device.to_owned(), program: program.name.clone(), header })
    };
    filters.iter().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use lb_datapath::attachments::FilterProgram;

    use super::*;

    fn filter(program: &str, ingress: bool) -> TcFilter {
        let program = Some(FilterProgram { id: 7, name: program.into() });
        TcFilter { ingress, info: 1 << 16 | 0x0300, handle: 0x534c_4345, program }
    }

    fn texts(filters: &[TcFilter]) -> Vec<String> {
        sluice_filters("eth0", 2, filters).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn filters_of_other_programs_are_kept() {
        let other = TcFilter { program: None, ..filter("", true) };
        let filters = [filter("cil_from_netdev", true), other, filter("lb_tc_ingress", true)];
        assert_eq!(texts(&filters), ["lb_tc_ingress on eth0 (ingress)"]);
    }

    #[test]
    fn filters_are_named_by_program_device_and_direction() {
        let filters = [filter("lb_tc_ingress", true), filter("lb_tc_egress", false)];
        assert_eq!(texts(&filters), ["lb_tc_ingress on eth0 (ingress)", "lb_tc_egress on eth0 (egress)"]);
    }
}
