//! Lists and removes tc filters on clsact queueing disciplines, through rtnetlink.

use std::fmt;
use std::future::ready;
use std::io;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};

/// The prefix of the names of all tc programs of Sluice.
const PROGRAM_PREFIX: &str = "lb_tc_";

/// A tc filter that runs a program of Sluice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TcFilter {
    device: String,
    program: String,
    /// Device, direction, priority and handle. The kernel needs these to remove the filter.
    header: TcHeader,
}

impl fmt::Display for TcFilter {
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

    /// Returns the names of the BPF programs that the filters of a device run, at ingress and at
    /// egress.
    pub async fn programs_of(&self, index: i32) -> [Vec<String>; 2] {
        let mut programs = [Vec::new(), Vec::new()];
        for (programs, ingress) in programs.iter_mut().zip([true, false]) {
            *programs = self.filters_of(index, ingress).await.iter().filter_map(bpf_program).collect();
        }
        programs
    }

    /// Returns the filters and queueing disciplines of Sluice on the devices of this network
    /// namespace. Filters must be removed before queueing disciplines.
    pub(super) async fn list(&self) -> io::Result<(Vec<TcFilter>, Vec<Qdisc>)> {
        let (mut filters, mut qdiscs) = (Vec::new(), Vec::new());
        let mut links = self.0.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
            let Ok(index) = i32::try_from(link.header.index) else { continue };
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let device = name.unwrap_or_else(|| format!("interface {index}"));
            let mut messages = self.filters_of(index, true).await;
            messages.extend(self.filters_of(index, false).await);
            let sluice = sluice_filters(&device, &messages);
            if !sluice.is_empty() && sluice.len() == messages.len() {
                qdiscs.push(Qdisc { device, index });
            }
            filters.extend(sluice);
        }
        Ok((filters, qdiscs))
    }

    async fn filters_of(&self, index: i32, ingress: bool) -> Vec<TcMessage> {
        let request = self.0.traffic_filter(index).get();
        let request = if ingress { request.ingress() } else { request.egress() };
        // The kernel returns an error for a device without clsact, and for a device that was
        // removed in the meantime.
        let replies: Vec<TcMessage> = request.execute().filter_map(|reply| ready(reply.ok())).collect().await;
        // A message without a handle is the head of a list of filters.
        replies.into_iter().filter(|message| message.header.handle != TcHandle::UNSPEC).collect()
    }

    /// Removes a clsact queueing discipline. Its filters must be removed already.
    pub(super) async fn remove_qdisc(&self, qdisc: &Qdisc) -> io::Result<()> {
        let mut request = self.0.qdisc().del(qdisc.index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.execute().await.map_err(io::Error::other)
    }

    /// Removes a filter.
    pub(super) async fn remove(&self, filter: &TcFilter) -> io::Result<()> {
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

/// Returns the filters among `messages` that run a program of Sluice.
fn sluice_filters(device: &str, messages: &[TcMessage]) -> Vec<TcFilter> {
    let filter = |message: &TcMessage| {
        let program = sluice_program(message)?;
        Some(TcFilter { device: device.to_owned(), program, header: message.header.clone() })
    };
    messages.iter().filter_map(filter).collect()
}

/// Returns the name of the program that a filter runs, if it is a program of Sluice.
fn sluice_program(message: &TcMessage) -> Option<String> {
    bpf_program(message).filter(|name| name.starts_with(PROGRAM_PREFIX))
}

/// Returns the name of the BPF program that a filter runs.
fn bpf_program(message: &TcMessage) -> Option<String> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(program: &str, minor: u16) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.parent = TcHandle { major: 0xffff, minor };
        message.attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Options(vec![TcOption::Bpf(TcFilterBpfOption::ProgName(program.into()))]),
        ];
        message
    }

    #[test]
    fn programs_are_recognised_by_prefix() {
        assert_eq!(sluice_program(&filter("lb_tc_ingress", 0xfff2)).as_deref(), Some("lb_tc_ingress"));
        assert_eq!(sluice_program(&filter("cil_from_netdev", 0xfff2)), None);
        assert_eq!(sluice_program(&TcMessage::default()), None);
    }

    #[test]
    fn filters_of_other_programs_are_kept() {
        let messages = [filter("cil_from_netdev", 0xfff2), filter("lb_tc_ingress", 0xfff2)];
        let sluice = sluice_filters("eth0", &messages);
        assert_eq!(
            sluice.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["lb_tc_ingress on eth0 (ingress)"]
        );
    }

    #[test]
    fn filters_are_named_by_program_device_and_direction() {
        let text = |minor| {
            TcFilter { device: "eth0".into(), program: "lb_tc_x".into(), header: filter("", minor).header }
                .to_string()
        };
        assert_eq!(text(TcHandle::MIN_INGRESS), "lb_tc_x on eth0 (ingress)");
        assert_eq!(text(TcHandle::MIN_EGRESS), "lb_tc_x on eth0 (egress)");
    }
}
