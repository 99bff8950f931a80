//! A folder of ordinary Kubernetes YAML and JSON as the source: `*.yaml`, `*.yml` and `*.json`, at any depth, several
//! documents in a file, `List` objects. Services, EndpointSlices, Endpoints, ServiceCIDRs and the own Node are taken;
//! everything else that such files hold (Deployments and so on) is passed over.
//!
//! The folder is watched. A file that stops being readable keeps what it said last, and that is reported.

mod document;
mod folder;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lb_model::SourceEvent;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

pub use folder::ManifestFolder;

/// An editor or `kubectl` writes a file in several steps: wait until nothing more comes for so long,
const QUIET: Duration = Duration::from_millis(50);
/// but not longer than this, should changes never cease.
const PATIENCE: Duration = Duration::from_secs(1);
/// The folder is read again this often, whatever the kernel says: it does not tell of changes on network file systems,
/// nor behind symbolic links that lead out of the folder.
const RESCAN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest folder {} cannot be read: {source}: give --manifests a folder that exists", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the manifest folder {} cannot be watched for changes: {source}: raise fs.inotify.max_user_watches if it is large", path.display())]
    Watch { path: PathBuf, source: notify::Error },
    #[error("reading the manifest folder was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Reads the folder once: every object in it, then that all has been sent.
pub fn load(root: &Path, this_node: &str) -> Result<Vec<SourceEvent>, ManifestError> {
    ManifestFolder::new(root.to_owned(), this_node.into()).scan()
}

/// Sends what the folder holds and then every change of it, until nobody listens any more.
pub async fn watch(
    root: PathBuf,
    this_node: Arc<str>,
    events: mpsc::Sender<SourceEvent>,
) -> Result<(), ManifestError> {
    let (wake, mut woken) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_change(event.kind)) {
            // Full: the scan that this asks for is due already.
            let _: Result<(), mpsc::error::TrySendError<()>> = wake.try_send(());
        }
    })
    .map_err(|source| ManifestError::Watch { path: root.clone(), source })?;
    // Before the first scan, so that no change falls between the two.
    watcher.watch(&root, RecursiveMode::Recursive).map_err(|source| match source.kind {
        notify::ErrorKind::PathNotFound => {
            ManifestError::Folder { path: root.clone(), source: std::io::ErrorKind::NotFound.into() }
        }
        notify::ErrorKind::Io(source) => ManifestError::Folder { path: root.clone(), source },
        _ => ManifestError::Watch { path: root.clone(), source },
    })?;

    let mut folder = ManifestFolder::new(root, this_node);
    loop {
        let scanned = tokio::task::spawn_blocking(move || {
            let found = folder.scan();
            (folder, found)
        });
        let found;
        (folder, found) = scanned.await?;
        for event in found? {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = events.closed() => return Ok(()),
            () = sleep(RESCAN) => {}
            Some(()) = woken.recv() => settle(&mut woken).await,
        }
    }
}

/// Waits until the folder is quiet.
async fn settle(woken: &mut mpsc::Receiver<()>) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let quiet = deadline.min(Instant::now() + QUIET);
        if timeout_at(quiet, woken.recv()).await.is_err() {
            return;
        }
        // Changes keep the channel full: look at it again after a pause, not in a loop.
        sleep_until(quiet).await;
    }
}

/// Reading a file makes events too: those must not cause the next scan.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
mod tests {
    use lb_model::WatchedResource;
    use std::fs;

    use super::*;

    async fn next(events: &mut mpsc::Receiver<SourceEvent>) -> SourceEvent {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, events.recv())
            .await
            .expect("a change is noticed")
            .expect("the watch goes on")
    }

    #[tokio::test]
    async fn changes_are_noticed_and_the_watch_ends_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let service = |ip: &str| {
            format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}}}}}")
        };
        let (sender, mut events) = mpsc::channel(16);
        let watcher = tokio::spawn(watch(folder.path().to_owned(), "here".into(), sender));
        for part in WatchedResource::ALL {
            assert_eq!(next(&mut events).await, SourceEvent::Synced(part));
        }
        // As an editor does it: another file takes the place of the old one. And in a folder made later.
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
        let error = watch(folder.path().join("none"), "here".into(), sender).await.unwrap_err();
        assert!(matches!(error, ManifestError::Folder { .. }), "{error:?}");
    }
}
