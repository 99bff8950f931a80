//! Every layout is [`Plain`](crate::plain::Plain): keys and values of maps are copied byte by byte.

use crate::event::{Event, EventBudget, Monitor};
use crate::layout::*;
use crate::plain::{AddressBytes, Plain};

macro_rules! of_both_families {
    ($($name:ident { $($field:ident),+ $(,)? })*) => { $(
        crate::assert_plain! {
            $name<[u8; 4]> { $($field),+ }
            $name<[u8; 16]> { $($field),+ }
        }
        // SAFETY: proved above for both families, and no other type is an `AddressBytes`.
        unsafe impl<A: AddressBytes> Plain for $name<A> {}
    )* };
}

of_both_families! {
    ServiceKey { addr, port, protocol, pad }
    Backend { addr, port, flags, service_id, weight }
    FlowKey { src_addr, dst_addr, src_port, dst_port, protocol, pad, reserved }
    Flow {
        generation, phase, protocol, deliver, counted, pad, last_seen_ns, opened_s, backend_id, service_id, client_port,
        service_port, source_port, backend_port, client_addr, service_addr, source_addr, backend_addr, request, reply,
        ifindex,
    }
    FragmentKey { src_addr, dst_addr, id, protocol, pad, reserved }
    SocketPeerKey { cookie, addr, port, pad }
    SocketPeer { addr, port, pad, backend_id, service_id }
    SourceRange { service_id, addr }
}

crate::plain! {
    ServiceEntry {
        service_id, flags, outside_base, outside_count, inside_base, inside_count, affinity_seconds, algorithm, kind,
        scheduler, pad,
    }
    Load { inactive, active, socket_inactive, socket_active }
    CountedSocket { backend_id, is_v6, counted, opened }
    FlowIndex { record, generation, direction, pad }
    FlowSide { end, ack, closed }
    FlowHand { next, pad, pressure_ns }
    FilterLine { words }
    FlowTimeouts {
        tcp_syn, tcp_established, tcp_half_closed, tcp_time_wait, tcp_reset, udp_unreplied, udp, udp_stream,
        sctp_opening, sctp_established, sctp_closed,
    }
    FragmentPorts { src_port, dst_port }
    ConnectedPeer { service_addr, backend_addr, service_port, backend_port, backend_id, service_id }
    ConnectedSocket { cookie, peer, opened }
    KnownAddress { ifindex, flags }
    NamespaceAddrs { addr_v4, addr_v6 }
    AffinityKey { client, service_id, client_kind }
    Affinity { last_used_ns, backend_id, pad }
    EndpointKey { backend_id, is_v6 }
    PortShortage { packets, last_ns }
    Thresholds { upper, lower }
    EndpointHealth { clients, until_ns, failed_ns, level, tried }
    Device { addr_v4, addr_v6, flags }
    LinkAddress { addr, pad }
    ServiceName { namespace, name, port_name, port, protocol, pad }
    Settings { netns_cookie, snat_port_first, snat_port_count, host_sockets_only, kernel_fragments, pad }
    Record {
        netns_cookie, reason, service_id, kind, flags, client, slot_base, slot_count, backend_id, source, known_flow,
        by_affinity, ifindex, left_out, scheduler, overloaded, pad,
    }
    Monitor { until_ns, kinds, pad }
    EventBudget { next_ns, limited, lost }
    Event {
        time_ns, netns_cookie, socket_cookie, service_id, backend_id, kind, path, reason, protocol, is_v6, pad,
        client_port, service_port, source_port, backend_port, client_addr, service_addr, source_addr, backend_addr,
    }
}
