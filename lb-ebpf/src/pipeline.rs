//! The way of a packet, once for both families and for XDP frames and skbs:
//!
//! ```text
//! parse ─► flow hit? ── yes ─────────────────────────────► rewrite ─► pass, or send along a route
//!             └ no ─► service hit? ── no ─► pass
//!                        └ yes ─► select ─► open flow pair ─► rewrite ─► …
//! ```

use aya_ebpf::bindings::BPF_ANY;
use lb_common::layout::{Flow, FlowKey, FragmentPorts, SCTP, TCP, backend_flags, deliver};
use lb_common::reason::Reason;
use lb_common::wire::{TCP_DATA_OFFSET, TCP_LEN, UDP_LEN};

use crate::count::count;
use crate::flow::{self, Opening};
use crate::frame::Frame;
use crate::icmp;
use crate::log;
use crate::maps::Scratch;
use crate::nat::{self, Header};
use crate::packet::{Fragment, Packet};
use crate::route::{Next, Route};
use crate::service::{self, Client, Refusal};
use crate::verdict::Verdict;

/// A packet that arrives at this node, parsed into `scratch`.
#[inline(always)]
pub fn ingress<F: Header, K: Frame>(frame: &K, scratch: &mut Scratch<F>) -> Verdict {
    let Scratch { packet, route, reply_key, flow: new, .. } = scratch;
    let packet = &*packet;
    let flow = match flow::find(packet) {
        Some(found) => {
            if found.flow.deliver == deliver::ROUTE {
                match find_way(frame, packet, route, found.flow.new_src_addr, found.flow.new_dst_addr) {
                    Ok(true) => {}
                    Ok(false) => return Verdict::LeaveToTc,
                    Err(verdict) => return verdict,
                }
            }
            found.touch(packet);
            found.flow
        }
        None => match connect(frame, packet, route, reply_key, new) {
            Ok(flow) => flow,
            Err(verdict) => return verdict,
        },
    };
    log::translated::<F>(&packet.key, flow);
    let forwarded = flow.deliver == deliver::ROUTE;
    if let Err(reason) = nat::rewrite(frame, packet, flow, forwarded) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    if forwarded {
        count(Reason::Forwarded);
        frame.send(packet, route)
    } else {
        count(Reason::Delivered);
        Verdict::Pass
    }
}

/// A packet that leaves this node: an endpoint's reply gets the service's address back.
#[inline(always)]
pub fn egress<F: Header, K: Frame>(frame: &K, packet: &Packet<F>) -> Verdict {
    let Some(found) = flow::find_reply(packet) else { return Verdict::Pass };
    if found.flow.deliver != deliver::PASS {
        return Verdict::Pass;
    }
    found.touch(packet);
    log::translated::<F>(&packet.key, found.flow);
    if let Err(reason) = nat::rewrite(frame, packet, found.flow, false) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    count(Reason::Delivered);
    Verdict::Pass
}

/// A packet of no known connection: perhaps it opens one to a service.
#[inline(always)]
fn connect<'a, F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    route: &mut Route,
    reply_key: &mut FlowKey<F::Addr>,
    flow: &'a mut Flow<F::Addr>,
) -> Result<&'a Flow<F::Addr>, Verdict> {
    let key = &packet.key;
    // What opens nothing and has no flow may belong to kube-proxy and is passed on. XDP need not even look whether it goes
    // to a service: it comes by again in tc, and is counted there.
    let opens = packet.opens();
    if !opens && !K::COMPLETE {
        return Err(Verdict::Pass);
    }
    let service = service::find::<F>(key.dst_addr, key.dst_port, key.protocol).ok_or(Verdict::Pass)?;
    if !opens {
        count(Reason::NotOpening);
        return Err(Verdict::Pass);
    }
    let (backend_id, backend) = match service::select::<F>(service, Client::Outside) {
        Ok(selected) => selected,
        Err(Refusal::Drop(reason)) => return Err(Verdict::Drop(reason)),
        Err(Refusal::Reject) => return Err(Verdict::Answer(icmp::Error::PortUnreachable)),
    };
    let mut opening = Opening {
        backend_addr: backend.addr,
        backend_port: backend.port,
        backend_id,
        service_id: service.service_id,
        source: key.src_addr,
        masquerade: false,
        deliver: deliver::PASS,
    };
    let mut can_finish = true;
    if backend.flags & backend_flags::LOCAL == 0 {
        can_finish = find_way(frame, packet, route, F::UNSPECIFIED, backend.addr)?;
        opening.source = route.source::<F>().ok_or(Verdict::Drop(Reason::NoSourceAddress))?;
        opening.masquerade = true;
        opening.deliver = deliver::ROUTE;
    }
    match flow::open(frame, packet, &opening, reply_key, flow) {
        Ok(flow) => {
            count(Reason::FlowOpened);
            log::opened::<F>(&packet.key, flow);
            // The endpoint stays chosen: were tc to choose again, those that XDP can reach would be taken more often.
            if can_finish { Ok(flow) } else { Err(Verdict::LeaveToTc) }
        }
        Err(reason) => Err(Verdict::Drop(reason)),
    }
}

/// Finds the way of a packet to `dst`, and whether this program can send it there, or the reason why nobody can.
#[inline(always)]
fn find_way<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    route: &mut Route,
    src: F::Addr,
    dst: F::Addr,
) -> Result<bool, Verdict> {
    match route.find::<F, K>(frame, src, dst, packet.key.protocol, longest(frame, packet)) {
        Next::None if K::COMPLETE => Err(Verdict::Drop(Reason::NoRoute)),
        Next::None => Err(Verdict::LeaveToTc),
        Next::TooBig => Err(Verdict::Answer(icmp::Error::TooBig)),
        _ if packet.ttl <= 1 => Err(Verdict::Answer(icmp::Error::TimeExceeded)),
        next => Ok(frame.can_send(packet, route, next)),
    }
}

/// Length of the largest IP packet in the frame, in bytes: what must fit the path.
#[inline(always)]
fn longest<F: Header, K: Frame>(frame: &K, packet: &Packet<F>) -> usize {
    let segment = frame.segment_payload();
    if segment == 0 {
        return packet.length;
    }
    if packet.key.protocol == SCTP {
        // Its segments have lengths of their own (GSO_BY_FRAGS). With 0 the kernel leaves the check to who takes the packet apart.
        return 0;
    }
    let transport = if packet.key.protocol == TCP {
        match frame.load::<[u8; 2]>(packet.l4 + TCP_DATA_OFFSET) {
            Some([offset, _]) => ((offset >> 4) as usize) * 4,
            None => TCP_LEN,
        }
    } else {
        UDP_LEN
    };
    packet.l4 - packet.l3 + transport + segment
}

/// The ports of a first fragment, for those that follow.
#[inline(always)]
fn remember_fragments<F: Header>(packet: &Packet<F>) {
    if packet.fragment == Fragment::First {
        let ports = FragmentPorts { src_port: packet.key.src_port, dst_port: packet.key.dst_port };
        // On failure the rest of the datagram is passed on untouched, as if its first fragment had not been seen.
        let _ = F::fragments().insert(&packet.fragment_key(), &ports, BPF_ANY as u64);
    }
}
