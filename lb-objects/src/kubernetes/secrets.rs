//! Watches of Secrets, all of a type or by name.
//!
//! Only Secrets of type `kubernetes.io/tls` are watched all together. The others are read only if
//! an object refers to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Secret as ApiSecret;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use lb_model::{ObjectName, Secret, SourceEvent, WatchedResource};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::watch::{RIGHTS_OF_ALL, WatchBackoff, WatchSpec, run_watch};
use crate::convert::{self, Converted};

/// How Secrets are watched.
pub(super) type SecretWatch =
    WatchSpec<fn(&ApiSecret) -> Converted<Secret>, fn(ObjectName, Option<Secret>) -> SourceEvent>;

pub(super) fn spec() -> SecretWatch {
    WatchSpec {
        resource: WatchedResource::Secrets,
        plural: "secrets",
        singular: "Secret",
        // Without them, the default certificate serves all hosts.
        optional: true,
        right: RIGHTS_OF_ALL,
        convert: convert::secret,
        make_event: |name, secret: Option<Secret>| SourceEvent::Secret(name, secret.map(Arc::new)),
    }
}

/// Sends the Secrets in `names` and their changes, until the receiver of the events is dropped or
/// the sender of the names is. A Secret that does not exist, or is no longer in `names`, is sent as
/// deleted. Sends no Secret of type `kubernetes.io/tls`, and no [`SourceEvent::Synced`].
pub async fn watch_named_secrets(
    client: Client,
    mut names: watch::Receiver<BTreeSet<ObjectName>>,
    events: mpsc::Sender<SourceEvent>,
) {
    let mut watches: BTreeMap<ObjectName, JoinHandle<()>> = BTreeMap::new();
    let sent = Sent::default();
    loop {
        let wanted = names.borrow_and_update().clone();
        let unwanted: Vec<_> = watches.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in unwanted {
            if let Some(watch) = watches.remove(&name) {
                watch.abort();
                // A watch that still runs could send the Secret after its deletion.
                let _: Result<(), tokio::task::JoinError> = watch.await;
            }
            if sent.remove(&name) && events.send(SourceEvent::Secret(name, None)).await.is_err() {
                break;
            }
        }
        for name in wanted {
            watches.entry(name).or_insert_with_key(|name| {
                tokio::spawn(watch_one(client.clone(), name.clone(), sent.clone(), events.clone()))
            });
        }
        let ended = tokio::select! {
            changed = names.changed() => changed.is_err(),
            () = events.closed() => true,
        };
        if ended {
            watches.into_values().for_each(|watch| watch.abort());
            return;
        }
    }
}

/// The Secrets that exist according to the events of the watches.
#[derive(Debug, Clone, Default)]
struct Sent(Arc<Mutex<BTreeSet<ObjectName>>>);

impl Sent {
    fn note(&self, event: &SourceEvent) {
        match event {
            SourceEvent::Secret(name, Some(_)) => drop(self.names().insert(name.clone())),
            SourceEvent::Secret(name, None) => drop(self.remove(name)),
            _ => {}
        }
    }

    fn remove(&self, name: &ObjectName) -> bool {
        self.names().remove(name)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<ObjectName>> {
        // A panic of another thread cannot leave a name half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch_one(client: Client, name: ObjectName, sent: Sent, events: mpsc::Sender<SourceEvent>) {
    // A list of one name reads one key of etcd. It costs less than the attempts of a
    // `listing::Reader`.
    let config = watcher::Config::default().fields(&format!("metadata.name={}", name.name()));
    let objects = watcher(Api::<ApiSecret>::namespaced(client, name.namespace()), config);
    let (sender, mut receiver) = mpsc::channel(4);
    let forward = async {
        let mut is_tls = false;
        while let Some(event) = receiver.recv().await {
            let event = match event {
                // The watch of all Secrets of this type sends it, and its deletion.
                SourceEvent::Secret(_, Some(secret)) if &*secret.kind == Secret::TLS => {
                    is_tls = true;
                    continue;
                }
                SourceEvent::Secret(_, None) if is_tls => {
                    is_tls = false;
                    continue;
                }
                SourceEvent::Synced(_) if is_tls => continue,
                // The other Secrets decide when the resource is synced.
                SourceEvent::Synced(_) if sent.names().contains(&name) => continue,
                SourceEvent::Synced(_) => SourceEvent::Secret(name.clone(), None),
                event => event,
            };
            sent.note(&event);
            if events.send(event).await.is_err() {
                return;
            }
        }
    };
    let watch = run_watch(objects.backoff(WatchBackoff::default()), spec(), &sender);
    tokio::select! {
        () = watch => {}
        () = forward => {}
    }
}
