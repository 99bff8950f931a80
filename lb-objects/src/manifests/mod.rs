//! Reads objects from a folder of ordinary Kubernetes YAML and JSON files.
//!
//! Files are `*.yaml`, `*.yml` and `*.json` in the folder and its subfolders. A file can contain
//! several documents and `List` objects. The selected objects among Services, EndpointSlices,
//! Endpoints, Pods, ServiceCIDRs, Ingresses, IngressClasses, Secrets and the Node of this process
//! are used. Objects of other kinds, such as Deployments, are ignored.
//!
//! The folder is watched for changes. A file that becomes unreadable or invalid is reported, and
//! its previous objects stay in effect.

mod document;
mod error;
mod folder;
mod old_ingress;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_model::SourceEvent;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

pub use error::ManifestError;
pub use folder::ManifestFolder;

use crate::selection::ObjectSelection;

/// A scan waits until no change has occurred for this time, because editors write a file in several
/// steps.
const QUIET_PERIOD: Duration = Duration::from_millis(50);
/// A scan waits at most this long, even if changes continue.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// The folder is scanned at least this often. The kernel does not report changes on network file
/// systems, nor changes of targets of symbolic links outside the folder.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);

/// Reads the folder once. Returns an event for each selected object and then the `Synced` events.
///
/// # Errors
/// Fails if the folder itself cannot be read. Unreadable files are reported in the events.
pub fn load(root: &Path, selection: ObjectSelection) -> Result<Vec<SourceEvent>, ManifestError> {
    ManifestFolder::new(root.to_owned(), selection).scan()
}

/// Sends the selected objects of the folder and then every change, until the receiver is dropped.
///
/// # Errors
/// Fails if the folder cannot be read at the start, or if the kernel cannot watch it.
pub async fn watch(
    root: PathBuf,
    selection: ObjectSelection,
    events: mpsc::Sender<SourceEvent>,
) -> Result<(), ManifestError> {
    let (changed, mut changes) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_change(event.kind)) {
            // If the channel is full, a scan is due already.
            let _: Result<(), mpsc::error::TrySendError<()>> = changed.try_send(());
        }
    })
    .map_err(|source| ManifestError::Watch { path: root.clone(), source })?;
    // Start to watch before the first scan: a change between the two would be missed.
    watcher.watch(&root, RecursiveMode::Recursive).map_err(|source| match source.kind {
        notify::ErrorKind::PathNotFound => {
            ManifestError::Folder { path: root.clone(), source: std::io::ErrorKind::NotFound.into() }
        }
        notify::ErrorKind::Io(source) => ManifestError::Folder { path: root.clone(), source },
        _ => ManifestError::Watch { path: root.clone(), source },
    })?;

    let mut folder = ManifestFolder::new(root, selection);
    loop {
        let scanned = tokio::task::spawn_blocking(move || {
            let events = folder.scan();
            (folder, events)
        });
        let scan;
        (folder, scan) = scanned.await?;
        for event in scan? {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = events.closed() => return Ok(()),
            () = sleep(RESCAN_INTERVAL) => {}
            Some(()) = changes.recv() => wait_until_quiet(&mut changes).await,
        }
    }
}

/// Waits until the folder has not changed for [`QUIET_PERIOD`], at most [`MAX_WAIT`].
async fn wait_until_quiet(changes: &mut mpsc::Receiver<()>) {
    let deadline = Instant::now() + MAX_WAIT;
    while Instant::now() < deadline {
        let quiet = deadline.min(Instant::now() + QUIET_PERIOD);
        if timeout_at(quiet, changes.recv()).await.is_err() {
            return;
        }
        // Continuous changes keep the channel full: pause, so that this is no busy loop.
        sleep_until(quiet).await;
    }
}

/// Returns whether an event can change the content of the folder. The scan itself causes events
/// when it opens and reads files; these must not cause the next scan.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lb_model::WatchedResource;

    use super::*;

    async fn next(events: &mut mpsc::Receiver<SourceEvent>) -> SourceEvent {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, events.recv())
            .await
            .expect("a change is detected")
            .expect("the watch continues")
    }

    #[tokio::test]
    async fn changes_are_detected_and_the_watch_ends_with_its_receiver() {
        let folder = tempfile::tempdir().unwrap();
        let service = |ip: &str| {
            format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}}}}}")
        };
        let (sender, mut events) = mpsc::channel(16);
        let watcher =
            tokio::spawn(watch(folder.path().to_owned(), ObjectSelection::of_services("here"), sender));
        for resource in WatchedResource::OF_SERVICES {
            assert_eq!(next(&mut events).await, SourceEvent::Synced(resource));
        }
        // An editor replaces the file by a new one. The subfolder is created while the watch runs.
        let deep = folder.path().join("deep");
        fs::create_dir(&deep).unwrap();
        for ip in ["10.96.0.1", "10.96.0.2"] {
            fs::write(deep.join("new"), service(ip)).unwrap();
            fs::rename(deep.join("new"), deep.join("web.yaml")).unwrap();
            let SourceEvent::Service(_, Some(service)) = next(&mut events).await else {
                panic!("no Service")
            };
            assert_eq!(service.cluster_ips[0].to_string(), ip);
        }
        fs::remove_file(deep.join("web.yaml")).unwrap();
        assert!(matches!(next(&mut events).await, SourceEvent::Service(_, None)));
        drop(events);
        watcher.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (sender, _events) = mpsc::channel(1);
        let error = watch(folder.path().join("none"), ObjectSelection::of_services("here"), sender)
            .await
            .unwrap_err();
        assert!(matches!(error, ManifestError::Folder { .. }), "{error:?}");
    }
}
