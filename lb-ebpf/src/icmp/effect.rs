//! The effect of an ICMP error about a request on its connection: an endpoint that is unreachable
//! counts as one that refuses, and a connection that can still be moved does not end.

use lb_common::family::{V4, V6};
use lb_common::layout::{Flow, TCP, UDP, backend_flags, flow_phase};

use super::kind::Unreachable;
use crate::address;
use crate::health::attempt;
use crate::records::Records;
use crate::service::{self, Destination, backend};

/// Bits of an effect.
pub mod consequence {
    /// The sender of the request does not receive the error, because its next SYN goes to another
    /// endpoint.
    pub const WITHHELD: u64 = 1 << 0;
    /// The connection ends: its next datagram selects an endpoint again.
    pub const ENDED: u64 = 1 << 1;
}

/// Returns the effect of an error, of [`consequence`]. `record` is the number of the connection's
/// record, with its generation above. `seq` is the quoted TCP sequence number.
#[inline(always)]
fn effect_of<F: Records>(record: u64, unreachable: u64, seq: u32, now: u64) -> u64 {
    let number = record as u32;
    let Some(flow) = F::flows().get(number) else { return 0 };
    if unreachable == Unreachable::No as u64 || flow.generation != (record >> 32) as u16 {
        return 0;
    }
    let Some(backend) = backend::<F>(flow.backend_id) else { return 0 };
    let flags = backend.flags;
    let is_opening = flow.phase == flow_phase::OPENING;
    let mut effect = 0;
    if flags & backend_flags::PASSIVE_HEALTH != 0 {
        // A sender that guesses does not know the sequence number (RFC 5927 4.1). Any datagram is
        // an attempt.
        let is_attempt = match flow.protocol {
            UDP => true,
            TCP => is_opening && flow.request.end.wrapping_sub(seq) <= 0xffff,
            _ => is_opening,
        };
        if is_attempt {
            F::judge(number, attempt::REFUSED, now);
            if flow.protocol == UDP {
                effect = consequence::ENDED;
            }
        }
    }
    if unreachable == Unreachable::Host as u64
        && flags & backend_flags::FAILOVER != 0
        && is_opening
        && flow.protocol == TCP
        && has_other_endpoint::<F>(flow)
    {
        effect |= consequence::WITHHELD;
    }
    effect
}

/// Returns whether the Service of a connection has more than one slot for any client.
#[inline(always)]
fn has_other_endpoint<F: Records>(flow: &Flow<F::Addr>) -> bool {
    if let Some(known) = address::known::<F>(&flow.service_addr)
        && let Destination::Service(service) =
            service::at_known::<F>(known, flow.service_addr, flow.service_port, flow.protocol)
    {
        return service.outside_count > 1 && service.inside_count > 1;
    }
    false
}

/// The functions that the verifier checks separately, by family.
pub trait Effects: Records {
    /// See [`effect_of`].
    fn effect(record: u64, unreachable: u64, seq: u64, now: u64) -> u64;
}

macro_rules! effects {
    ($($family:ty: $effect:ident;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $effect(record: u64, unreachable: u64, seq: u64, now: u64) -> u64 {
            effect_of::<$family>(record, unreachable, seq as u32, now)
        }

        impl Effects for $family {
            #[inline(always)]
            fn effect(record: u64, unreachable: u64, seq: u64, now: u64) -> u64 {
                $effect(record, unreachable, seq, now)
            }
        }
    )* };
}

effects! {
    V4: lb_effect_v4;
    V6: lb_effect_v6;
}
