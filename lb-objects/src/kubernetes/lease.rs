//! Elects one leader among processes by a Lease of the API server, with the rules of client-go
//! (tools/leaderelection/leaderelection.go).
//!
//! A candidate compares no clocks of different machines. It measures with its own clock how long
//! the Lease of another holder has not changed.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use lb_model::ObjectName;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::watch::with_causes;

/// The times of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Other candidates take a Lease that has not changed for this time.
    pub duration: Duration,
    /// A leader that could not renew its Lease for this time leads no longer. It is less than
    /// `duration`, so that there are never two leaders.
    pub renew_deadline: Duration,
    /// Between two attempts to take or renew the Lease.
    pub retry: Duration,
}

impl LeaseTimes {
    /// Returns times in the ratio of the control plane of Kubernetes, which has 15, 10 and 2 s.
    pub fn of_duration(duration: Duration) -> Self {
        Self { duration, renew_deadline: duration * 2 / 3, retry: duration * 2 / 15 }
    }
}

/// Time limit for giving the Lease up.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// Takes part in an election until `stop` becomes true or its sender is dropped, and then gives
/// the Lease up. `leads` is true while this process is the leader. `identity` distinguishes this
/// process from the others.
pub async fn take_part(
    client: Client,
    lease: ObjectName,
    identity: String,
    times: LeaseTimes,
    leads: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let namespace = match lease.namespace() {
        "" => client.default_namespace().to_owned(),
        namespace => namespace.to_owned(),
    };
    let mut candidate = Candidate {
        leases: Api::namespaced(client, &namespace),
        name: lease.name().to_owned(),
        election: Election { identity, times, seen: None },
        own: None,
    };
    let election = async {
        let mut refusals = Refusals::default();
        loop {
            candidate.acquire(&mut refusals).await;
            info!(lease = %lease, "this proxy leads: it writes the status of Ingresses");
            leads.send_replace(true);
            candidate.keep(&mut refusals).await;
            leads.send_replace(false);
            warn!(lease = %lease, "this proxy leads no longer");
        }
    };
    tokio::select! {
        () = election => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if leads.send_replace(false) {
        candidate.release().await;
    }
}

/// Reports each reason why the API server refuses the Lease once.
#[derive(Debug, Default)]
struct Refusals(Option<String>);

impl Refusals {
    fn report(&mut self, error: &kube::Error) {
        let text = with_causes(error);
        let remedy = match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                ": grant the verbs get, create and update on leases.coordination.k8s.io (see deploy/ingress)"
            }
            _ => "",
        };
        if self.0.as_ref() != Some(&text) {
            warn!("cannot read or write the Lease of the leader: {text}{remedy}");
            self.0 = Some(text);
        }
    }
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    election: Election,
    /// The Lease as this process wrote it last. The next renewal needs no read.
    own: Option<Lease>,
}

/// The result of an attempt.
enum Attempt {
    Leads,
    Follows,
}

impl Candidate {
    async fn acquire(&mut self, refusals: &mut Refusals) {
        loop {
            let limit = self.election.times.renew_deadline;
            match timeout(limit, self.attempt()).await {
                Ok(Ok(Attempt::Leads)) => return,
                Ok(Ok(Attempt::Follows)) | Err(_) => {}
                Ok(Err(error)) if is_conflict(&error) => debug!("another candidate wrote the Lease first"),
                Ok(Err(error)) => refusals.report(&error),
            }
            // Up to 1.2 times the pause, so that candidates do not write at the same time.
            sleep(self.election.times.retry.mul_f64(1.0 + jitter() * 0.2)).await;
        }
    }

    /// Returns when this process leads no longer.
    async fn keep(&mut self, refusals: &mut Refusals) {
        let times = self.election.times;
        let mut deadline = Instant::now() + times.renew_deadline;
        loop {
            sleep(times.retry).await;
            let begin = Instant::now();
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(Attempt::Leads)) => deadline = begin + times.renew_deadline,
                Ok(Ok(Attempt::Follows)) => return,
                Ok(Err(error)) => {
                    // Another program may have changed the Lease: read it.
                    self.own = None;
                    if !is_conflict(&error) {
                        refusals.report(&error);
                    }
                }
                Err(_) => self.own = None,
            }
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    async fn attempt(&mut self) -> kube::Result<Attempt> {
        let now = MicroTime(Timestamp::now());
        let found = match self.own.take() {
            Some(own) => own,
            None => match self.leases.get_opt(&self.name).await? {
                Some(found) => found,
                None => {
                    let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                    let spec = Some(self.election.claim(&LeaseSpec::default(), now));
                    let lease = Lease { metadata, spec };
                    return self.written(self.leases.create(&PostParams::default(), &lease).await?);
                }
            },
        };
        let spec = found.spec.clone().unwrap_or_default();
        if !self.election.may_claim(&spec, Instant::now()) {
            return Ok(Attempt::Follows);
        }
        // The resource version makes it fail if another candidate was faster.
        let lease = Lease { spec: Some(self.election.claim(&spec, now)), ..found };
        self.written(self.leases.replace(&self.name, &PostParams::default(), &lease).await?)
    }

    fn written(&mut self, lease: Lease) -> kube::Result<Attempt> {
        self.own = Some(lease);
        Ok(Attempt::Leads)
    }

    /// Empties the holder, so that another candidate need not wait for the end of the Lease.
    async fn release(mut self) {
        let release = async {
            let found = match self.own.take() {
                Some(own) => own,
                None => self.leases.get(&self.name).await?,
            };
            let spec = found.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_ref() == Some(&self.election.identity) {
                let spec = Some(Election::released(&spec, MicroTime(Timestamp::now())));
                let lease = Lease { spec, ..found };
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok(())
        };
        match timeout(RELEASE_LIMIT, release).await {
            Ok(Ok(())) => info!("the Lease of the leader is free"),
            Ok(Err(error)) => {
                let error: kube::Error = error;
                warn!("cannot give up the Lease of the leader: {}", with_causes(&error));
            }
            Err(_) => warn!("cannot give up the Lease of the leader: the API server does not answer"),
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists())
}

/// Returns a number from 0 to 1 that differs between processes.
fn jitter() -> f64 {
    f64::from(Timestamp::now().subsec_microsecond().unsigned_abs()) / 1e6
}

/// The rules of an election, without I/O.
#[derive(Debug)]
struct Election {
    identity: String,
    times: LeaseTimes,
    /// The Lease of another holder, and when this process first saw it in this form.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// Returns whether this process may write itself into the Lease.
    fn may_claim(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            self.seen = None;
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => now.duration_since(*since) >= self.times.duration,
            _ => {
                info!(leader = holder, "another proxy writes the status of Ingresses");
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    /// Returns the Lease with this process as its holder.
    fn claim(&self, before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        let is_renewal = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = match (is_renewal, before.lease_transitions) {
            (true, transitions) => transitions.unwrap_or_default(),
            (false, Some(transitions)) => transitions.saturating_add(1),
            (false, None) => 0,
        };
        let acquired = before.acquire_time.clone().filter(|_| is_renewal);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.times.duration.as_secs().max(1)).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Returns the Lease without a holder.
    fn released(before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: before.lease_transitions,
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(identity: &str) -> Election {
        Election {
            identity: identity.to_owned(),
            times: LeaseTimes::of_duration(Duration::from_secs(15)),
            seen: None,
        }
    }

    fn at(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn a_lease_is_taken_only_after_it_has_not_changed_for_its_duration() {
        let (a, mut b) = (election("a"), election("b"));
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let first = a.claim(&LeaseSpec::default(), at(0));
        assert!(!b.may_claim(&first, begin));
        // The holder renews it: the time begins again, whatever clock the holder has.
        let renewed = a.claim(&first, at(-3600));
        assert!(!b.may_claim(&renewed, after(14)));
        assert!(!b.may_claim(&renewed, after(28)));
        assert!(b.may_claim(&renewed, after(29)));
    }

    #[test]
    fn the_pause_is_at_most_a_fifth_longer() {
        for _ in 0..100 {
            assert!((0.0..1.0).contains(&jitter()));
            std::thread::sleep(Duration::from_micros(1));
        }
    }

    #[test]
    fn a_free_lease_is_taken_at_once() {
        let (a, mut b) = (election("a"), election("b"));
        let held = a.claim(&LeaseSpec::default(), at(0));
        assert!(!b.may_claim(&held, Instant::now()));
        assert!(b.may_claim(&Election::released(&held, at(1)), Instant::now()));
    }

    #[test]
    fn a_claim_counts_the_changes_of_holders() {
        let (a, b) = (election("a"), election("b"));
        let first = a.claim(&LeaseSpec::default(), at(1));
        let renewed = a.claim(&first, at(2));
        let taken = b.claim(&renewed, at(3));
        let of =
            |spec: &LeaseSpec| (spec.lease_transitions, spec.acquire_time.clone(), spec.renew_time.clone());
        assert_eq!(of(&first), (Some(0), Some(at(1)), Some(at(1))));
        assert_eq!(of(&renewed), (Some(0), Some(at(1)), Some(at(2))));
        assert_eq!(of(&taken), (Some(1), Some(at(3)), Some(at(3))));
        assert_eq!(taken.lease_duration_seconds, Some(15));
    }
}
