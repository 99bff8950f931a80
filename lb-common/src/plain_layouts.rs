//! Every layout is [`Plain`](crate::plain::Plain): keys and values of maps are copied byte by byte.

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
    Backend { addr, port, flags, service_id }
    FlowKey { src_addr, dst_addr, src_port, dst_port, protocol, pad, reserved }
    Flow {
        last_seen_ns, new_src_addr, new_dst_addr, new_src_port, new_dst_port, backend_id, service_id, direction, deliver,
        tcp_seen, pad,
    }
    FragmentKey { src_addr, dst_addr, id, protocol, pad, reserved }
    SocketPeerKey { cookie, addr, port, pad }
    SocketPeer { addr, port, pad, backend_id, service_id }
    SourceRange { service_id, addr }
}

crate::plain! {
    Service {
        service_id, flags, outside_base, outside_count, inside_base, inside_count, affinity_seconds, algorithm, kind, pad,
    }
    FragmentPorts { src_port, dst_port }
    ConnectedPeer { service_addr, backend_addr, service_port, backend_port, backend_id, service_id }
    ConnectedSocket { cookie, peer }
    KnownAddress { ifindex, flags }
    NamespaceAddrs { addr_v4, addr_v6 }
    AffinityKey { client, service_id, client_kind }
    Affinity { last_used_ns, backend_id, pad }
    Device { addr_v4, addr_v6, flags }
    ServiceName { namespace, name, port_name, port, protocol, pad }
    Settings { netns_cookie, snat_port_first, snat_port_count, host_sockets_only, pad }
    Record {
        netns_cookie, reason, service_id, kind, flags, client, slot_base, slot_count, backend_id, source, known_flow,
        by_affinity, ifindex,
    }
}
