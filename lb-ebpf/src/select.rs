//! Which endpoint a new connection gets.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, Service, affinity_client, backend_flags, record_client, service_flags,
};
use lb_common::reason::Reason;

use crate::aligned::Aligned;
use crate::client::Client;
use crate::clock::now;
use crate::maps::{AFFINITY, Maps, SLOTS};
use crate::record::{note, recording};
use crate::service::backend;

/// Why no endpoint is taken.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Answer with an error.
    Reject,
    /// Say nothing.
    Drop(Reason),
}

/// Names the client of a packet, for session affinity.
#[inline(always)]
pub fn name_by_address<F: Maps>(key: &mut AffinityKey, service: &Service, addr: F::Addr) {
    key.client = [0; 16];
    // SAFETY: an address has at most 16 bytes.
    unsafe { key.client.as_mut_ptr().cast::<F::Addr>().write_unaligned(addr) };
    key.service_id = service.service_id;
    key.client_kind = if F::IS_V6 { affinity_client::ADDRESS_V6 } else { affinity_client::ADDRESS_V4 };
}

/// Names the client of a socket: the pod or node it lives in, as its source address is not chosen yet.
#[inline(always)]
pub fn name_by_namespace<F: Maps>(service: &Service, netns_cookie: u64) -> Aligned<AffinityKey> {
    // SAFETY: the same size, and any bytes are valid on both sides.
    let client = unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([netns_cookie, 0]) };
    let client_kind = if F::IS_V6 { affinity_client::NAMESPACE_V6 } else { affinity_client::NAMESPACE_V4 };
    Aligned(AffinityKey { client, service_id: service.service_id, client_kind })
}

/// The endpoints that are eligible for a client.
#[derive(Copy, Clone)]
pub struct Eligible {
    /// The first of their slots, and how many there are.
    base: u32,
    count: u32,
    /// The bit of [`backend_flags`] that they all have.
    list: u16,
    /// There is none: drop instead of reject.
    drop: bool,
}

impl Eligible {
    #[inline(always)]
    pub fn of(service: &Service, client: Client) -> Self {
        let (base, count, local, drop) = match client {
            Client::Outside => (
                service.outside_base,
                service.outside_count,
                service_flags::OUTSIDE_LOCAL,
                service_flags::OUTSIDE_DROP,
            ),
            Client::Inside => (
                service.inside_base,
                service.inside_count,
                service_flags::INSIDE_LOCAL,
                service_flags::INSIDE_DROP,
            ),
        };
        let list =
            if service.flags & local != 0 { backend_flags::IN_LOCAL } else { backend_flags::IN_CLUSTER };
        Self { base, count, list, drop: service.flags & drop != 0 }
    }

    /// The endpoint with this id, if it is one of them now. Ids are used again, by another endpoint of the same service perhaps:
    /// it is eligible as well.
    #[inline(always)]
    pub fn get<F: Maps>(&self, service: &Service, id: u32) -> Option<&'static Backend<F::Addr>> {
        backend::<F>(id)
            .filter(|backend| backend.service_id == service.service_id && backend.flags & self.list != 0)
    }
}

/// Records the client and the endpoints that are eligible for it.
#[inline(always)]
pub fn note_eligible(client: Client, eligible: &Eligible) {
    note(|record| {
        record.client = match client {
            Client::Inside => record_client::INSIDE,
            Client::Outside => record_client::OUTSIDE,
        };
        (record.slot_base, record.slot_count) = (eligible.base, eligible.count);
    });
}

/// Takes an endpoint for a new connection: its id and entry. `client_key` names the client for session affinity.
#[inline(always)]
pub fn select<F: Maps>(
    service: &Service,
    eligible: &Eligible,
    client_key: &AffinityKey,
) -> Result<(u32, &'static Backend<F::Addr>), Refusal> {
    if eligible.count == 0 {
        return Err(if eligible.drop { Refusal::Drop(Reason::NoEndpointDropped) } else { Refusal::Reject });
    }
    if service.affinity_seconds != 0
        && let Some(selected) = recall::<F>(service, eligible, client_key)
    {
        return Ok(selected);
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() } as u64;
    // Multiply and shift instead of a division: uniform to within count / 2^32.
    let index = ((random * eligible.count as u64) >> 32) as u32;
    let slot = eligible.base.wrapping_add(index);
    let id = *SLOTS.get(slot).ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    let backend = backend::<F>(id).ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    if service.affinity_seconds != 0 && !recording() {
        let affinity = Aligned(Affinity { last_used_ns: now(), backend_id: id, pad: 0 });
        // The map forgets the least recently used by itself; on failure the next connection is given any endpoint.
        let _ = AFFINITY.insert(client_key, &affinity.0, BPF_ANY as u64);
    }
    Ok((id, backend))
}

/// The endpoint that the client was given last, if that was not too long ago and it is still eligible.
#[inline(always)]
fn recall<F: Maps>(
    service: &Service,
    eligible: &Eligible,
    client_key: &AffinityKey,
) -> Option<(u32, &'static Backend<F::Addr>)> {
    const SECOND: u64 = 1_000_000_000;
    let affinity = AFFINITY.get_ptr_mut(client_key)?;
    // SAFETY: a map value, valid until the program ends; others write it whole or change its one aligned word.
    let known = unsafe { affinity.read() };
    let now = now();
    if now.wrapping_sub(known.last_used_ns) > service.affinity_seconds as u64 * SECOND {
        return None;
    }
    let backend = eligible.get::<F>(service, known.backend_id)?;
    if !recording() {
        // SAFETY: as above; one aligned word.
        unsafe { (&raw mut (*affinity).last_used_ns).write_volatile(now) };
    }
    note(|record| record.by_affinity = 1);
    Some((known.backend_id, backend))
}
