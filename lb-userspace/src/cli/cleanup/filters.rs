//! Filters on clsact queueing disciplines, by rtnetlink.

use std::fmt;
use std::future::ready;
use std::io;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};

/// All programs of Sluice for traffic control have names that begin so.
const PROGRAM_PREFIX: &str = "lb_tc_";

/// A filter that runs a program of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    device: String,
    program: String,
    /// Names device, direction, priority and handle: all that is needed to remove it.
    header: TcHeader,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.header.parent.minor == TcHandle::MIN_EGRESS { "egress" } else { "ingress" };
        write!(f, "{} on {} ({direction})", self.program, self.device)
    }
}

/// A clsact queueing discipline on which there are no filters but ours: an agent made it, or nobody misses it.
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

pub(super) struct Netlink(Handle);

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// What is ours on the devices of this network namespace, in an order in which it can be removed.
    pub async fn ours(&self) -> io::Result<(Vec<Filter>, Vec<Qdisc>)> {
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
            let ours = ours_among(&device, &messages);
            if !ours.is_empty() && ours.len() == messages.len() {
                qdiscs.push(Qdisc { device, index });
            }
            filters.extend(ours);
        }
        Ok((filters, qdiscs))
    }

    async fn filters_of(&self, index: i32, ingress: bool) -> Vec<TcMessage> {
        let request = self.0.traffic_filter(index).get();
        let request = if ingress { request.ingress() } else { request.egress() };
        // A device without clsact answers with an error; one may also vanish while it is looked at.
        let answers: Vec<TcMessage> =
            request.execute().filter_map(|answer| ready(answer.ok())).collect().await;
        // Without a handle it is the head of a list of filters, not a filter.
        answers.into_iter().filter(|message| message.header.handle != TcHandle::UNSPEC).collect()
    }

    /// Removes an empty clsact queueing discipline.
    pub async fn remove_qdisc(&self, qdisc: &Qdisc) -> io::Result<()> {
        let mut request = self.0.qdisc().del(qdisc.index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.execute().await.map_err(io::Error::other)
    }

    pub async fn remove(&self, filter: &Filter) -> io::Result<()> {
        let mut message = TcMessage::default();
        message.header = filter.header.clone();
        message.attributes.push(TcAttribute::Kind("bpf".into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut answers = self.0.clone().request(request).map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

fn ours_among(device: &str, messages: &[TcMessage]) -> Vec<Filter> {
    let filter = |message: &TcMessage| {
        let program = program_of_ours(message)?;
        Some(Filter { device: device.to_owned(), program, header: message.header.clone() })
    };
    messages.iter().filter_map(filter).collect()
}

/// The name of the program that a filter runs, if it is one of ours.
fn program_of_ours(message: &TcMessage) -> Option<String> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) if name.starts_with(PROGRAM_PREFIX) => {
            Some(name.clone())
        }
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
    fn only_programs_of_ours_are_taken() {
        assert_eq!(program_of_ours(&filter("lb_tc_ingress", 0xfff2)).as_deref(), Some("lb_tc_ingress"));
        assert_eq!(program_of_ours(&filter("cil_from_netdev", 0xfff2)), None);
        assert_eq!(program_of_ours(&TcMessage::default()), None);
    }

    #[test]
    fn filters_of_others_stay() {
        let messages = [filter("cil_from_netdev", 0xfff2), filter("lb_tc_ingress", 0xfff2)];
        let ours = ours_among("eth0", &messages);
        assert_eq!(
            ours.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["lb_tc_ingress on eth0 (ingress)"]
        );
    }

    #[test]
    fn filters_are_named_by_program_device_and_direction() {
        let text = |minor| {
            Filter { device: "eth0".into(), program: "lb_tc_x".into(), header: filter("", minor).header }
                .to_string()
        };
        assert_eq!(text(TcHandle::MIN_INGRESS), "lb_tc_x on eth0 (ingress)");
        assert_eq!(text(TcHandle::MIN_EGRESS), "lb_tc_x on eth0 (egress)");
    }
}
