//! Writes the addresses of the proxies to the Ingresses, in a task of its own: a slow API server
//! delays no request and no route.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use lb_ingress::observe::IngressMetrics;
use lb_ingress::status::StatusPlan;
use lb_model::{Ingress, ObjectName, PublishedAddress};
use lb_objects::kubernetes::{
    LeaseTimes, PublishedService, StatusWrite, take_part, with_causes, write_ingress_status,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

/// Where the addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AddressSource {
    Fixed(Vec<PublishedAddress>),
    Service(ObjectName),
}

/// The settings of the task.
#[derive(Debug, Clone)]
pub(super) struct StatusSettings {
    pub addresses: AddressSource,
    /// An empty namespace means the one of this pod.
    pub lease: ObjectName,
    pub times: LeaseTimes,
    /// Distinguishes this process from the others.
    pub identity: String,
    /// The leader removes the addresses before it ends.
    pub clear_on_exit: bool,
}

/// How often the leader reads the Service of the addresses.
const REFRESH: Duration = Duration::from_secs(30);
/// Between two rounds of requests. It bounds the requests if two controllers write one status.
const PACE: Duration = Duration::from_secs(1);
const PACE_OF_FAILURES: Duration = Duration::from_secs(10);
/// The requests of a round, and how many of them are sent at once.
const ROUND: usize = 400;
const AT_ONCE: usize = 8;
/// Time limit of reading the addresses, and of each write.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for giving the lead up, and for removing the addresses before.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// Changes of Ingresses: `None` for one that is not served.
pub(super) type ServedChange = (ObjectName, Option<Arc<Ingress>>);

/// The running task.
#[derive(Debug)]
pub(super) struct StatusTask {
    changes: mpsc::UnboundedSender<ServedChange>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl StatusTask {
    pub fn start(client: Client, settings: StatusSettings, metrics: IngressMetrics) -> Self {
        let (changes, receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(client, settings, metrics, receiver, stopped));
        Self { changes, stop, task }
    }

    /// Accepts changes without waiting.
    pub fn update(&self, changes: Vec<ServedChange>) {
        for change in changes {
            // The task ends only after `stop`.
            let _: Result<(), mpsc::error::SendError<ServedChange>> = self.changes.send(change);
        }
    }

    /// Gives the lead up.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if timeout(2 * EXIT_LIMIT, self.task).await.is_err() {
            warn!("the API server does not answer: the Lease of the leader ends by itself");
        }
    }
}

async fn run(
    client: Client,
    settings: StatusSettings,
    metrics: IngressMetrics,
    mut changes: mpsc::UnboundedReceiver<ServedChange>,
    mut stop: watch::Receiver<bool>,
) {
    let (leads, mut leading) = watch::channel(false);
    let (leave, left) = watch::channel(false);
    let StatusSettings { addresses, lease, times, identity, clear_on_exit } = settings;
    let election = tokio::spawn(take_part(client.clone(), lease, identity, times, leads, left));
    let mut writer = Writer { client: client.clone(), plan: StatusPlan::default(), metrics, failure: None };
    let mut service = match addresses {
        AddressSource::Fixed(addresses) => {
            writer.plan.set_addresses(Some(addresses));
            None
        }
        AddressSource::Service(name) => Some(PublishedService::new(client, name)),
    };
    let (mut refresh_at, mut write_at) = (Instant::now(), Instant::now());
    let while_leader = (leading.clone(), stop.clone());
    let mut batch = Vec::new();
    loop {
        let leader = *leading.borrow_and_update();
        writer.metrics.leader.set(leader.into());
        tokio::select! {
            biased;
            () = becomes(&mut stop, true) => break,
            changed = leading.changed() => {
                if changed.is_err() {
                    // The election has panicked. It logs no reason that could be repeated here.
                    return;
                }
                // Another leader may have written since.
                writer.plan.compare_all();
                (refresh_at, write_at) = (Instant::now(), Instant::now());
            }
            count = changes.recv_many(&mut batch, ROUND) => {
                if count == 0 {
                    break;
                }
                batch.drain(..).for_each(|(name, ingress)| writer.plan.set_served(name, ingress));
            }
            () = sleep_until(refresh_at), if leader && service.is_some() => {
                refresh_at = Instant::now() + REFRESH;
                if let Some(service) = &mut service {
                    while_leading(&while_leader, writer.refresh(service)).await;
                }
            }
            () = sleep_until(write_at), if leader && writer.plan.is_pending() => {
                while_leading(&while_leader, writer.write_round()).await;
                write_at = Instant::now() + if writer.failure.is_some() { PACE_OF_FAILURES } else { PACE };
            }
        }
    }
    if clear_on_exit && *leading.borrow() && timeout(EXIT_LIMIT, writer.clear()).await.is_err() {
        warn!("cannot remove all addresses from the Ingresses: the API server is too slow");
    }
    leave.send_replace(true);
    // The election logs its failures.
    drop(timeout(EXIT_LIMIT, election).await);
    writer.metrics.leader.set(0);
}

/// Runs `work`, and drops it if this process leads no longer or has to end.
async fn while_leading(
    (leading, stop): &(watch::Receiver<bool>, watch::Receiver<bool>),
    work: impl Future<Output = ()>,
) {
    let (mut leading, mut stop) = (leading.clone(), stop.clone());
    tokio::select! {
        biased;
        () = becomes(&mut leading, false) => {}
        () = becomes(&mut stop, true) => {}
        () = work => {}
    }
}

/// Waits until a value is `wanted`, or its sender is gone.
async fn becomes(value: &mut watch::Receiver<bool>, wanted: bool) {
    drop(value.wait_for(|value| *value == wanted).await);
}

struct Writer {
    client: Client,
    plan: StatusPlan,
    metrics: IngressMetrics,
    /// The last failure. The same one is logged once.
    failure: Option<String>,
}

impl Writer {
    async fn refresh(&mut self, service: &mut PublishedService) {
        match timeout(REQUEST_LIMIT, service.addresses()).await {
            Ok(Ok(addresses)) if addresses.is_empty() => {
                self.failed(
                    "the Service of --publish-service has no address: the Ingresses keep their status",
                );
                self.plan.set_addresses(None);
            }
            Ok(Ok(addresses)) => {
                self.failure = None;
                self.plan.set_addresses(Some(addresses));
            }
            Ok(Err(error)) => {
                self.failed(&format!(
                    "cannot read the Service of --publish-service: {}",
                    with_causes(&error)
                ));
            }
            Err(_) => self.failed("cannot read the Service of --publish-service: the API server is too slow"),
        }
    }

    async fn write_round(&mut self) {
        let taken = self.plan.take_differing(ROUND);
        let addresses = self.plan.addresses().to_vec();
        let open = taken.iter().map(|(name, _)| name.clone()).collect();
        let mut round = Round { plan: &mut self.plan, open };
        let client = self.client.clone();
        let mut results = std::pin::pin!(write_all(&client, taken, &addresses));
        let mut failures = Vec::new();
        while let Some((name, result)) = results.next().await {
            round.open.remove(&name);
            match result {
                Ok(StatusWrite::Written) => debug!(ingress = %name, "status written"),
                Ok(StatusWrite::Outdated) => {
                    debug!(ingress = %name, "no status written: the Ingress has changed");
                }
                Err(error) => {
                    failures.push(format!("cannot write the status of Ingress {name}: {error}"));
                    round.plan.retry(name);
                }
            }
        }
        drop(round);
        match failures.first() {
            Some(failure) => {
                self.metrics.status_failures.inc_by(failures.len() as u64);
                self.failed(failure);
            }
            None => self.failure = None,
        }
    }

    /// Removes the addresses from the Ingresses that have them.
    async fn clear(&self) {
        let published = self.plan.published();
        info!(ingresses = published.len(), "removing the addresses from the Ingresses");
        let mut results = std::pin::pin!(write_all(&self.client, published, &[]));
        while let Some((name, result)) = results.next().await {
            if let Err(error) = result {
                warn!("cannot remove the address from Ingress {name}: {error}");
            }
        }
    }

    fn failed(&mut self, text: &str) {
        if self.failure.as_deref() != Some(text) {
            warn!("{text}");
            self.failure = Some(text.to_owned());
        }
    }
}

/// The Ingresses of a round whose result is open. They wait again if the round is dropped.
struct Round<'a> {
    plan: &'a mut StatusPlan,
    open: BTreeSet<ObjectName>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        for name in std::mem::take(&mut self.open) {
            self.plan.retry(name);
        }
    }
}

fn write_all(
    client: &Client,
    ingresses: Vec<(ObjectName, Arc<Ingress>)>,
    addresses: &[PublishedAddress],
) -> impl futures::Stream<Item = (ObjectName, Result<StatusWrite, String>)> {
    let writes = ingresses.into_iter().map(move |(name, ingress)| async move {
        let write = write_ingress_status(client, &name, &ingress, addresses);
        let result = match timeout(REQUEST_LIMIT, write).await {
            Ok(result) => result.map_err(|error| with_causes(&error)),
            Err(_) => Err("the API server is too slow".to_owned()),
        };
        (name, result)
    });
    futures::stream::iter(writes).buffer_unordered(AT_ONCE)
}
