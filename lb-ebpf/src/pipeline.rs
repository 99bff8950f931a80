//! The decisions about a packet. The code is the same for both families, and for XDP frames and
//! skbs:
//!
//! ```text
//! parse ─► flow? ── yes ─────────────────────────────────► rewrite ─► pass, or send along a route
//!             └ no ─► known destination? ── no ─► pass (or drop: an address of Services that none has)
//!                        └ yes ─► service? ── no ─► pass (or reject: a port that the ClusterIP does not have)
//!                                    └ yes ─► allowed? ─► select ─► open connection ─► rewrite ─► …
//! ```

use aya_ebpf::bindings::BPF_ANY;
use lb_common::layout::{
    FlowKey, FragmentPorts, TCP, address_flags, backend_flags, counted, deliver, direction, record_source,
    service_flags,
};
use lb_common::reason::Reason;

use crate::address::{self, Known};
use crate::client::{self, Client};
use crate::clock::now;
use crate::count::count;
use crate::deliver::{self as delivery, Decided, Deliver, Delivery};
use crate::event;
use crate::filter;
use crate::flow::{self, Found, Opening};
use crate::frame::Frame;
use crate::handover;
use crate::log;
use crate::nat::{self, Header};
use crate::packet::{Fragment, Packet, is_acceptable};
use crate::record::{self, note};
use crate::records::Records;
use crate::route::RouteLookup;
use crate::scratch::Scratch;
use crate::seam::forget;
use crate::select::{self, Choice, Eligible, Refusal, Selected, select};
use crate::service::{self, Destination};
use crate::verdict::{Answer, Verdict};

/// Decides about a packet that arrives at this node, parsed into `scratch`.
#[inline(always)]
pub fn ingress<F: Header + Records, K: Deliver>(frame: &K, scratch: &mut Scratch<F>) -> Verdict {
    let scratch = forget(scratch);
    if !filter::may_be_ours(&scratch.packet) {
        return Verdict::Pass;
    }
    let decision = if let Some(found) = flow::find(&scratch.packet, &mut scratch.translation) {
        continue_connection(frame, scratch, found)
    } else if handover::earlier_programs_open() {
        return Verdict::HandOver;
    } else if let Some(known) = address::known::<F>(&scratch.packet.key.dst_addr) {
        open_connection(frame, scratch, known)
    } else {
        let Scratch { packet, reply_key, translation, .. } = forget(scratch);
        flow::give_up_closed(packet, reply_key, translation);
        return service::to_unknown::<F>(packet.key.dst_addr);
    };
    if let Err(verdict) = decision {
        return verdict;
    }
    let Scratch { packet, translation, route, .. } = forget(scratch);
    let (packet, translation, mut delivery) = (&*packet, &*translation, Decided::before(route));
    log::translated::<F>(&packet.key, translation);
    if let Err(reason) = nat::rewrite(frame, packet, translation, delivery.is_forwarded()) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    match delivery.delivery() {
        Delivery::UpStack => {
            count(Reason::Delivered);
            Verdict::Pass
        }
        Delivery::Out(route) => {
            count(Reason::Forwarded);
            frame.send(route, packet.l3)
        }
    }
}

/// Decides about a packet that leaves this node: an endpoint's reply gets the service's address
/// back.
#[inline(always)]
pub fn egress<F: Header + Records, K: Deliver>(frame: &K, scratch: &mut Scratch<F>) -> Verdict {
    let Scratch { packet, translation, .. } = forget(scratch);
    let packet = &*packet;
    if !filter::may_leave_as_ours(packet) {
        return Verdict::Pass;
    }
    let Some(found) = flow::find_reply(packet, translation) else {
        keep_answer(frame, scratch);
        return handover::unknown();
    };
    found.follow::<F, K>(packet);
    if found.changes_nothing() {
        return Verdict::Pass;
    }
    let came_by = translation.ifindex;
    if came_by != 0 && came_by != frame.ifindex() {
        return leave_by(frame, scratch, came_by, found.now());
    }
    let Scratch { packet, translation, .. } = forget(scratch);
    let (packet, translation) = (&*packet, &*translation);
    log::translated::<F>(&packet.key, translation);
    if let Err(reason) = nat::rewrite(frame, packet, translation, false) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    count(Reason::Delivered);
    Verdict::Pass
}

/// Opens a connection for a datagram that leaves from an address of this node and the port of a
/// Service. The datagram is a pod's if the CNI has chosen that port for it (masquerade). The answer
/// would open a connection to the Service.
#[inline(always)]
fn keep_answer<F: Header + Records, K: Frame>(frame: &K, scratch: &mut Scratch<F>) {
    let Scratch { packet, quoted, translation, .. } = forget(scratch);
    let packet = &*packet;
    // A packet that leaves by the device that it came by is a reply that was translated there.
    if !packet.is_datagram() || record::recording() || frame.came_back() || handover::is_going_on() {
        return;
    }
    let FlowKey { src_addr, src_port, protocol, .. } = packet.key;
    if let Some(known) = address::known::<F>(&src_addr)
        && known.has(address_flags::NODE)
        && let Destination::Service(service) = service::at_known::<F>(known, src_addr, src_port, protocol)
    {
        flow::keep_answer(frame, packet, quoted, service.service_id, translation);
    }
}

/// Sends a reply out of the device that the request came by, if that is the kernel's route for
/// packets with the service's address as source. The kernel has chosen the device by the address of
/// the endpoint, and rules may send that elsewhere (`ip rule from …`, as the AWS VPC CNI has them).
#[inline(always)]
fn leave_by<F: Header + Records, K: Deliver>(
    frame: &K,
    scratch: &mut Scratch<F>,
    ifindex: u32,
    now: u64,
) -> Verdict {
    let Scratch { packet, translation, route, .. } = forget(scratch);
    let (packet, translation) = (&*packet, &*translation);
    delivery::find_return(frame, packet, translation, route, ifindex, now);
    log::translated::<F>(&packet.key, translation);
    if let Err(reason) = nat::rewrite(frame, packet, translation, false) {
        return Verdict::Drop(reason);
    }
    remember_fragments(packet);
    count(Reason::Delivered);
    match route.found() {
        Some(route) => frame.send(route, packet.l3),
        None => Verdict::Pass,
    }
}

/// Decides about a packet of a known connection. With `Ok`, the packet is rewritten and delivered
/// as `scratch` describes.
#[inline(always)]
fn continue_connection<F: Header + Records, K: Deliver>(
    frame: &K,
    scratch: &mut Scratch<F>,
    found: Found<F::Addr>,
) -> Result<(), Verdict> {
    let Scratch { packet, route, translation, link, .. } = scratch;
    let (packet, translation) = (&*packet, &*translation);
    // A reply that continues on its path is translated at egress. At ingress it would get the
    // service's address as source, perhaps one of this node's, and the kernel would drop it as a
    // martian.
    if translation.is_passing_reply() {
        return Err(Verdict::Pass);
    }
    note_known(frame, packet, &found, route);
    if found.changes_nothing() {
        found.follow::<F, K>(packet);
        return Err(Verdict::Pass);
    }
    let mut delivery = delivery::of_translation(frame, packet, translation, route, found.now())?;
    if !delivery.is_of_frame_for_this_node(frame, link, found.now()) {
        return Err(Verdict::Pass);
    }
    if !delivery.is_possible(frame) {
        return Err(Verdict::LeaveToTc);
    }
    found.follow::<F, K>(packet);
    Ok(())
}

/// Decides about a packet of no known connection to a known address. Opens a connection if the
/// packet can open one and the address and port are a Service. With `Ok`, the packet is rewritten
/// and delivered as `scratch` describes.
#[inline(always)]
fn open_connection<F: Header + Records, K: Deliver>(
    frame: &K,
    scratch: &mut Scratch<F>,
    known: Known,
) -> Result<(), Verdict> {
    let Scratch { packet, route, translation, client, link, .. } = scratch;
    let packet = &*packet;
    let key = &packet.key;
    // A packet that opens nothing and has no flow may belong to kube-proxy: it passes. XDP does not
    // even look up the service, because tc receives the packet next and counts it.
    let opens = packet.opens();
    if !opens && !K::COMPLETE {
        return Err(handover::unknown());
    }
    let now = now();
    let service = match service::at_known::<F>(known, key.dst_addr, key.dst_port, key.protocol) {
        Destination::Service(_) | Destination::UnknownPort
            if !is_acceptable(frame, packet) || !frame.is_addressed_to_remembered(link, now) =>
        {
            return Err(Verdict::Pass);
        }
        Destination::Service(service) if opens => service,
        Destination::UnknownPort if opens => return Err(Verdict::Answer(Answer::UnknownPort)),
        Destination::Service(_) | Destination::UnknownPort if handover::is_going_on() => {
            return Err(Verdict::HandOver);
        }
        Destination::Service(_) | Destination::UnknownPort if is_reset(packet, known) => {
            return Err(Verdict::Answer(Answer::NoConnection));
        }
        Destination::Service(_) => {
            count(Reason::NotOpening);
            return Err(Verdict::Pass);
        }
        _ => return Err(handover::unknown()),
    };
    record::note_service(service);
    if !client::is_allowed::<F>(service, key.src_addr) {
        return Err(Verdict::Drop(Reason::SourceRange));
    }
    let client_is_here = client::came_from_pod(frame);
    // The location of the client matters only if the two ranges of the service differ, and for a
    // record.
    let origin = if client_is_here {
        Client::Inside
    } else if service.flags & service_flags::POLICY_LOCAL != 0 || record::recording() {
        client::of_source::<F, K>(frame, key, route)
    } else {
        Client::Outside
    };
    let eligible = Eligible::of(service, origin);
    select::note_eligible(origin, &eligible);
    select::name_by_address::<F>(client, service, key.src_addr);
    let choice = Choice::for_packet::<F>(service, client, key, now);
    let Selected { id: backend_id, backend, .. } =
        match select::<F>(service, &eligible, client, choice, translation.avoid, counted::NONE) {
            Ok(selected) => selected,
            Err(Refusal::Drop(reason)) => return Err(Verdict::Drop(reason)),
            Err(Refusal::Reject) => return Err(Verdict::Answer(Answer::NoEndpoint)),
        };
    let mut opening = Opening {
        backend_addr: backend.addr,
        backend_port: backend.port,
        backend_id,
        has_thresholds: backend.flags & backend_flags::THRESHOLDS != 0,
        service_id: service.service_id,
        source: key.src_addr,
        masquerade: false,
        deliver: deliver::PASS,
        ifindex: frame.ifindex(),
    };
    let mut source = source_rewrite(backend.addr == key.src_addr, backend.flags, client_is_here);
    note(|record| {
        record.backend_id = backend_id;
        record.source = source;
    });
    let mut delivery = match source {
        record_source::ENDPOINT_ELSEWHERE => delivery::to_endpoint(frame, packet, route, backend.addr, now)?,
        record_source::HAIRPIN => {
            delivery::find_route(frame, packet, route, F::UNSPECIFIED, backend.addr, now).map(Decided::out)?
        }
        _ => Decided::up_stack(route),
    };
    if delivery.is_out() {
        opening.source = delivery.source::<F>().ok_or(Verdict::Drop(Reason::NoSourceAddress))?;
        opening.masquerade = true;
        opening.deliver = deliver::ROUTE;
    } else if source == record_source::ENDPOINT_ELSEWHERE {
        source = record_source::KEPT_ENDPOINT_HERE;
        note(|record| record.source = source);
    }
    flow::open(frame, packet, &opening, translation, now).map_err(Verdict::Drop)?;
    count(Reason::FlowOpened);
    log::opened::<F>(key, translation);
    event::opened::<F>(key, translation, service.service_id, backend_id, event::path_of(K::COMPLETE));
    // The flow stays when XDP cannot send the packet. If tc selected again, endpoints that XDP can
    // reach would be selected more often than others.
    if !delivery.is_possible(frame) {
        return Err(Verdict::LeaveToTc);
    }
    Ok(())
}

/// Returns whether a packet to a Service that belongs to no connection, and opens none, is answered
/// with a reset. Otherwise it passes, because it may belong to kube-proxy. If kube-proxy has left
/// nothing on this node and no host has the address, the kernel would route the packet back to the
/// router that it came from, until its TTL ends.
#[inline(always)]
fn is_reset<F: Header>(packet: &Packet<F>, known: Known) -> bool {
    packet.key.protocol == TCP && known.is_service_only() && service::are_all_served()
}

/// Returns whether the source must be rewritten, with the reason: one of [`record_source`]. The
/// reply must pass this node again. A reply of an endpoint on this node, or to a client on this
/// node, passes it anyway. A reply of an endpoint that is the client itself would never leave the
/// client.
#[inline(always)]
fn source_rewrite(hairpin: bool, endpoint: u16, client_is_here: bool) -> u32 {
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

/// Records that the packet belongs to a known connection, and the endpoints that would be eligible
/// for a new one.
#[inline(always)]
fn note_known<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    found: &Found<F::Addr>,
    route: &mut RouteLookup,
) {
    if !record::recording() {
        return;
    }
    let key = &packet.key;
    if found.direction() == direction::REQUEST
        && let Some(known) = address::known::<F>(&key.dst_addr)
        && let Destination::Service(service) =
            service::at_known::<F>(known, key.dst_addr, key.dst_port, key.protocol)
    {
        let origin = if client::came_from_pod(frame) {
            Client::Inside
        } else {
            client::of_source::<F, K>(frame, key, route)
        };
        record::note_service(service);
        select::note_eligible(origin, &Eligible::of(service, origin));
    }
    let (service_id, backend_id) = found.ids();
    note(|record| {
        record.known_flow = 1;
        record.service_id = service_id;
        record.backend_id = backend_id;
    });
}

/// Stores the ports of a first fragment for the fragments that follow.
#[inline(always)]
fn remember_fragments<F: Header>(packet: &Packet<F>) {
    if packet.fragment == Fragment::First && !record::recording() {
        let ports = FragmentPorts { src_port: packet.key.src_port, dst_port: packet.key.dst_port };
        // On failure the rest of the datagram passes untouched, as if its first fragment had not
        // arrived.
        let _ = F::fragments().insert(&packet.fragment_key(), &ports, BPF_ANY as u64);
    }
}
