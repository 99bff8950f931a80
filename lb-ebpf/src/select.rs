//! Selecting the endpoint of a new connection.

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
use crate::records;
use crate::service::backend;

/// Why no endpoint is selected.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The client receives an error.
    Reject,
    /// The client receives nothing.
    Drop(Reason),
}

/// Identifies the client of a packet for session affinity: by its source address.
#[inline(always)]
pub fn name_by_address<F: Maps>(key: &mut AffinityKey, service: &Service, addr: F::Addr) {
    key.client = [0; 16];
    // SAFETY: an address has at most 16 bytes.
    unsafe { key.client.as_mut_ptr().cast::<F::Addr>().write_unaligned(addr) };
    key.service_id = service.service_id;
    key.client_kind = if F::IS_V6 { affinity_client::ADDRESS_V6 } else { affinity_client::ADDRESS_V4 };
}

/// Identifies the client of a call for session affinity: by its pod or node, because the socket may
/// have no source address yet.
#[inline(always)]
pub fn name_by_namespace<F: Maps>(service: &Service, netns_cookie: u64) -> Aligned<AffinityKey> {
    // SAFETY: both types have the same size and take any bytes.
    let client = unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([netns_cookie, 0]) };
    let client_kind = if F::IS_V6 { affinity_client::NAMESPACE_V6 } else { affinity_client::NAMESPACE_V4 };
    Aligned(AffinityKey { client, service_id: service.service_id, client_kind })
}

/// The endpoints that are eligible for a client.
#[derive(Copy, Clone)]
pub struct Eligible {
    /// First slot and number of slots.
    base: u32,
    count: u32,
    /// The bit of [`backend_flags`] that all of them have.
    list: u16,
    /// If there is no endpoint: drop instead of reject.
    drop: bool,
}

impl Eligible {
    /// Returns the endpoints of a service that are eligible for a client.
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

    /// Returns the endpoint with this id if it is eligible now. The agent reuses ids: the id may
    /// belong to another endpoint of the same service by now, which is eligible as well.
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

/// Returns what an endpoint is selected by: a random number; while connections give way to new
/// ones, a hash of the connection's tuple. A handshake whose record gave way then reaches the same
/// endpoint again with the client's next SYN.
#[inline(always)]
pub fn choice<F: Maps>(tuple_hash: u32) -> u32 {
    if records::is_under_pressure::<F>(now()) { tuple_hash } else { random() }
}

/// Returns a random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

/// Selects an endpoint for a new connection, and returns its id and entry. `client_key` identifies
/// the client for session affinity. `choice`: any number; equal numbers select the same endpoint.
#[inline(always)]
pub fn select<F: Maps>(
    service: &Service,
    eligible: &Eligible,
    client_key: &AffinityKey,
    choice: u32,
) -> Result<(u32, &'static Backend<F::Addr>), Refusal> {
    if eligible.count == 0 {
        return Err(if eligible.drop { Refusal::Drop(Reason::NoEndpointDropped) } else { Refusal::Reject });
    }
    if service.affinity_seconds != 0
        && let Some(selected) = recall::<F>(service, eligible, client_key)
    {
        return Ok(selected);
    }
    // Multiplying and shifting is uniform to within count / 2^32, and needs no division.
    let index = ((choice as u64 * eligible.count as u64) >> 32) as u32;
    let slot = eligible.base.wrapping_add(index);
    let id = *SLOTS.get(slot).ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    // An endpoint of another service: the service entry was replaced while this program read it.
    let backend = backend::<F>(id)
        .filter(|backend| backend.service_id == service.service_id)
        .ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    if service.affinity_seconds != 0 && !recording() {
        let affinity = Aligned(Affinity { last_used_ns: now(), backend_id: id, pad: 0 });
        // On failure the next connection gets any endpoint.
        let _ = AFFINITY.insert(client_key, &affinity.0, BPF_ANY as u64);
    }
    Ok((id, backend))
}

/// Returns the client's last endpoint, if its affinity has not timed out and the endpoint is still
/// eligible.
#[inline(always)]
fn recall<F: Maps>(
    service: &Service,
    eligible: &Eligible,
    client_key: &AffinityKey,
) -> Option<(u32, &'static Backend<F::Addr>)> {
    const SECOND: u64 = 1_000_000_000;
    let affinity = AFFINITY.get_ptr_mut(client_key)?;
    // SAFETY: the entry is copied. If it is evicted and reused during the copy, the endpoint may be
    // another client's; it is used only if it is eligible for this client too.
    let known = unsafe { affinity.read() };
    let now = now();
    if now.wrapping_sub(known.last_used_ns) > service.affinity_seconds as u64 * SECOND {
        return None;
    }
    let backend = eligible.get::<F>(service, known.backend_id)?;
    if !recording() {
        // SAFETY: one aligned word of a map value. If the element was reused, another client's
        // affinity is prolonged.
        unsafe { (&raw mut (*affinity).last_used_ns).write_volatile(now) };
    }
    note(|record| record.by_affinity = 1);
    Some((known.backend_id, backend))
}
