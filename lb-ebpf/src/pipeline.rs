//! The way of a packet, once for both families and for XDP frames and skbs:
//!
//! ```text
//! parse ─► flow hit? ── yes ─────────────────────────────► rewrite ─► pass, or send along a route
//!             └ no ─► known destination? ── no ─► pass (or drop: an address of Services that none has)
//!                        └ yes ─► service hit? ── no ─► pass (or reject: a port that the ClusterIP does not have)
//!                                    └ yes ─► allowed? ─► select ─► open flow pair ─► rewrite ─► …
//! ```

use aya_ebpf::bindings::BPF_ANY;
#[cfg(doc)]
use lb_common::layout::address_flags;
use lb_common::layout::{
    AffinityKey, Flow, FlowKey, FragmentPorts, SCTP, TCP, backend_flags, deliver, direction, record_source,
    service_flags,
};
use lb_common::reason::Reason;
use lb_common::wire::{TCP_DATA_OFFSET, TCP_LEN, UDP_LEN};

use crate::call;
use crate::client::{self, Client};
use crate::count::count;
use crate::flow::{self, Opening};
use crate::frame::Frame;
use crate::icmp;
use crate::log;
use crate::maps::Scratch;
use crate::nat::{self, Header};
use crate::packet::{Fragment, Packet};
use crate::record::{self, note};
use crate::route::{Next, Route};
use crate::select::{self, Eligible, Refusal, select};
use crate::service::{self, Destination};
use crate::verdict::Verdict;

/// A packet that arrives at this node, parsed into `scratch`.
#[inline(always)]
pub fn ingress<F: Header, K: Frame>(frame: &K, scratch: &mut Scratch<F>) -> Verdict {
    let Scratch { packet, route, reply_key, flow: new, client, .. } = scratch;
    let packet = &*packet;
    if let Some(namespace) = record::socket() {
        return call::record::<F>(&packet.key, namespace);
    }
    let flow = match find_flow(packet) {
        // A reply that goes on along its path is translated where it leaves: with the service's address as source, perhaps one of
        // this node's, the kernel would take it for a martian.
        Ok(found) if found.is_passing_reply() => return Verdict::Pass,
        Ok(found) => {
            note_known(frame, packet, found.flow);
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
        Err(flags) => {
            let opened = connect(frame, packet, flags, route, client, reply_key, new);
            match opened {
                Ok(flow) => flow,
                Err(verdict) => return verdict,
            }
        }
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
    found.touch(packet);
    log::translated::<F>(&packet.key, found.flow);
    if let Err(reason) = nat::rewrite(frame, packet, found.flow, false) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    count(Reason::Delivered);
    Verdict::Pass
}

/// The entry of the packet's connection, or what is known of its destination (bits of [`address_flags`]). The tables are asked in
/// the order in which packets are frequent: those of open connections, those that are none of ours, the rest.
#[inline(always)]
fn find_flow<F: Header>(packet: &Packet<F>) -> Result<flow::Found<F::Addr>, u32> {
    if let Some(found) = flow::find(packet) {
        return Ok(found);
    }
    let flags = service::known::<F>(&packet.key.dst_addr);
    if flags == 0 {
        return Err(0);
    }
    flow::find_half_open(packet).ok_or(flags)
}

/// A packet of no known connection, whose destination is known by `flags`: perhaps it opens one to a service.
#[inline(always)]
fn connect<'a, F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    flags: u32,
    route: &mut Route,
    client: &mut AffinityKey,
    reply_key: &mut FlowKey<F::Addr>,
    flow: &'a mut Flow<F::Addr>,
) -> Result<&'a Flow<F::Addr>, Verdict> {
    let key = &packet.key;
    if flags == 0 {
        return Err(to_unknown::<F>(key.dst_addr));
    }
    // What opens nothing and has no flow may belong to kube-proxy and is passed on. XDP need not even look whether it goes
    // to a service: it comes by again in tc, and is counted there.
    let opens = packet.opens();
    if !opens && !K::COMPLETE {
        return Err(Verdict::Pass);
    }
    let service = match service::at_known::<F>(flags, key.dst_addr, key.dst_port, key.protocol) {
        Destination::Service(service) => service,
        Destination::UnknownPort if opens => return Err(Verdict::Answer(icmp::Error::UnknownPort)),
        _ => return Err(Verdict::Pass),
    };
    if !opens {
        count(Reason::NotOpening);
        return Err(Verdict::Pass);
    }
    record::note_service(service);
    if !client::is_allowed::<F>(service, key.src_addr) {
        return Err(Verdict::Drop(Reason::SourceRange));
    }
    let client_is_here = client::came_from_pod(frame);
    // Only a service whose ranges differ makes it necessary to know who asks; and a record, for people.
    let asks = if client_is_here {
        Client::Inside
    } else if service.flags & service_flags::POLICY_LOCAL != 0 || record::recording() {
        client::of_source::<F>(key.src_addr)
    } else {
        Client::Outside
    };
    let eligible = Eligible::of(service, asks);
    record::note_eligible(asks, &eligible);
    select::name_by_address::<F>(client, service, key.src_addr);
    let (backend_id, backend) = match select::<F>(service, &eligible, client) {
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
    let way = reply_way(backend.addr == key.src_addr, backend.flags, client_is_here);
    note(|record| {
        record.backend_id = backend_id;
        record.source = way;
    });
    if way == record_source::ENDPOINT_ELSEWHERE || way == record_source::HAIRPIN {
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

/// A packet to an address that is neither this node's nor a Service's.
#[inline(always)]
pub fn to_unknown<F: Header>(addr: F::Addr) -> Verdict {
    match service::at_unknown::<F>(addr) {
        Destination::Unassigned => Verdict::Drop(Reason::UnassignedAddress),
        _ => Verdict::Pass,
    }
}

/// Whether the source must be rewritten, and why: one of [`record_source`]. The reply must pass this node again. That of an
/// endpoint or to a client on this node does by itself; that of an endpoint which is the client itself would never leave it.
#[inline(always)]
fn reply_way(hairpin: bool, endpoint: u16, client_is_here: bool) -> u32 {
    if hairpin {
        record_source::HAIRPIN
    } else if endpoint & backend_flags::LOCAL != 0 {
        record_source::KEPT_ENDPOINT_HERE
    } else if client_is_here {
        record_source::KEPT_CLIENT_HERE
    } else {
        record_source::ENDPOINT_ELSEWHERE
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

/// Writes down that the packet belongs to a connection that is known, and what would be eligible were it a new one.
#[inline(always)]
fn note_known<F: Header, K: Frame>(frame: &K, packet: &Packet<F>, flow: &Flow<F::Addr>) {
    if !record::recording() {
        return;
    }
    let key = &packet.key;
    if flow.direction == direction::REQUEST
        && let flags = service::known::<F>(&key.dst_addr)
        && let Destination::Service(service) =
            service::at_known::<F>(flags, key.dst_addr, key.dst_port, key.protocol)
    {
        let asks =
            if client::came_from_pod(frame) { Client::Inside } else { client::of_source::<F>(key.src_addr) };
        record::note_service(service);
        record::note_eligible(asks, &Eligible::of(service, asks));
    }
    note(|record| {
        record.known_flow = 1;
        record.service_id = flow.service_id;
        record.backend_id = flow.backend_id;
    });
}

/// The ports of a first fragment, for those that follow.
#[inline(always)]
fn remember_fragments<F: Header>(packet: &Packet<F>) {
    if packet.fragment == Fragment::First && !record::recording() {
        let ports = FragmentPorts { src_port: packet.key.src_port, dst_port: packet.key.dst_port };
        // On failure the rest of the datagram is passed on untouched, as if its first fragment had not been seen.
        let _ = F::fragments().insert(&packet.fragment_key(), &ports, BPF_ANY as u64);
    }
}
