//! A thread that watches the network namespaces of this node and the addresses in them. On request
//! it visits all of them.
//!
//! inotify reports new names. Nothing reports that a namespace is mounted there a moment later. So
//! the names and processes are read again soon after a change, and less and less often after that.
//!
//! The kernel reports that devices or addresses in a namespace change ([`super::changes`]). Its
//! main address also depends on its routes, which follow soon. So a namespace is entered when it is
//! new and after each notification, some more times with longer and longer pauses, and then not
//! until the next notification. Without CAP_NET_BROADCAST there are none: then each namespace is
//! entered again and again after the longest pause.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::layout::NamespaceAddrs;
use lb_datapath::namespace_cookie;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

use super::changes::{Change, Changes, PeerId, peer_id};
use super::list::{NamespaceId, list, run_in};
use crate::node::watch::main_addresses;

/// First pause after a change. It doubles with each reading that finds no change.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Maximum pause between two readings of the names and processes.
const MAX_SCAN_PAUSE: Duration = Duration::from_secs(10);
/// Maximum pause between two readings of a namespace without addresses: its network is being set
/// up.
const MAX_PAUSE_WITHOUT_ADDRESS: Duration = Duration::from_secs(5);
/// Maximum pause between two readings of a namespace with addresses.
const MAX_PAUSE_WITH_ADDRESS: Duration = Duration::from_secs(30);
/// Each visit is repeated after this time. It covers calls that were in progress during the first
/// visit.
const SECOND_VISIT: Duration = Duration::from_secs(1);

/// The main addresses of each namespace, by its cookie. Namespaces without addresses are left out.
pub type NamespaceAddresses = BTreeMap<u64, NamespaceAddrs>;

/// Work to do in every namespace when [`Follower::visit`] is called.
pub trait Visitor: Send + Sync {
    /// Description of the work, for messages that begin with `cannot`.
    const TASK: &'static str;
    /// Called before each round of visits. Returns false if no namespace needs a visit.
    fn prepare(&mut self) -> io::Result<bool>;
    /// Called in each namespace.
    fn visit(&self) -> io::Result<()>;
}

/// A handle of the thread. Dropping it ends the thread.
pub struct Follower {
    pub addresses: watch::Receiver<Arc<NamespaceAddresses>>,
    wake: Sender<Wake>,
    /// The task that receives notifications. `None` if the kernel refuses them.
    notified: Option<AbortHandle>,
}

impl Follower {
    /// Requests a visit of every namespace, and another one a second later. Does not wait for them.
    pub fn visit(&self) {
        // Sending cannot fail: the thread lives as long as this handle.
        let _ = self.wake.send(Wake::Visit);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(task) = &self.notified {
            task.abort();
        }
        let _ = self.wake.send(Wake::End);
    }
}

enum Wake {
    /// A name was created or removed.
    Names,
    /// Devices or addresses have changed.
    Changed(Change),
    /// There are no notifications any more.
    Unnotified,
    Visit,
    End,
}

/// Reads all namespaces once, then starts the thread. To be called in a tokio runtime.
pub fn follow(folder: PathBuf, visitor: impl Visitor + 'static) -> io::Result<Follower> {
    let (wake, woken) = channel();
    let (sender, addresses) = watch::channel(Arc::default());
    // Subscribe before the first reading: every later change causes a notification.
    let changes = Changes::open()
        .inspect_err(|error| debug!(%error, "no notifications of addresses in network namespaces"));
    let now = Instant::now();
    let mut worker = Worker {
        is_notified: changes.is_ok(),
        folder,
        visitor,
        known: BTreeMap::new(),
        scan: Schedule::now(now),
        visits: BTreeSet::new(),
        watcher: None,
        wake: wake.clone(),
        logged: BTreeMap::new(),
        sender,
    };
    worker.round(now);
    thread::Builder::new().name("namespaces".to_owned()).spawn(move || worker.run(&woken))?;
    let notified = changes.ok().map(|changes| tokio::spawn(forward(changes, wake.clone())).abort_handle());
    Ok(Follower { addresses, wake, notified })
}

/// Passes notifications on to the thread.
async fn forward(mut changes: Changes, wake: Sender<Wake>) {
    loop {
        match changes.next().await {
            Ok(change) => {
                // The thread has ended.
                if wake.send(Wake::Changed(change)).is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!("no notifications of addresses in network namespaces any more: {error}");
                let _ = wake.send(Wake::Unnotified);
                return;
            }
        }
    }
}

/// The time of the next reading, and the pause after it.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// `None`: a notification will follow.
    at: Option<Instant>,
    pause: Duration,
}

impl Schedule {
    /// Reads now.
    fn now(now: Instant) -> Self {
        Self { at: Some(now), pause: FIRST_PAUSE }
    }

    /// Sets the next time after a reading. `changed` is whether that reading found a change.
    /// `is_notified` is whether there are notifications: then no reading follows the longest pause.
    fn next(&mut self, now: Instant, changed: bool, max_pause: Duration, is_notified: bool) {
        if changed {
            self.pause = FIRST_PAUSE;
        }
        let ends = is_notified && self.pause >= max_pause;
        self.at = (!ends).then_some(now + self.pause);
        self.pause = (self.pause * 2).min(max_pause);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

/// A known namespace.
struct Namespace {
    path: PathBuf,
    /// `None`: there are no notifications about it.
    peer: Option<PeerId>,
    schedule: Schedule,
    /// Cookie and addresses. `None` before the first reading.
    addresses: Option<(u64, NamespaceAddrs)>,
}

struct Worker<V> {
    /// There are notifications.
    is_notified: bool,
    folder: PathBuf,
    visitor: V,
    known: BTreeMap<NamespaceId, Namespace>,
    scan: Schedule,
    /// Times of requested visits.
    visits: BTreeSet<Instant>,
    watcher: Option<RecommendedWatcher>,
    wake: Sender<Wake>,
    /// The warning that was logged last, by topic.
    logged: BTreeMap<&'static str, String>,
    sender: watch::Sender<Arc<NamespaceAddresses>>,
}

impl<V: Visitor> Worker<V> {
    fn run(mut self, woken: &Receiver<Wake>) {
        loop {
            let next = self.next();
            let pause = next.saturating_duration_since(Instant::now());
            let first = match woken.recv_timeout(pause) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = Instant::now();
            for wake in first.into_iter().chain(woken.try_iter()) {
                match wake {
                    Wake::Names => self.scan = Schedule::now(now),
                    Wake::Changed(change) => self.read_soon(change, now),
                    Wake::Unnotified => {
                        self.is_notified = false;
                        self.known.values_mut().for_each(|namespace| namespace.peer = None);
                        self.read_soon(Change::Anywhere, now);
                    }
                    Wake::Visit => self.visits.extend([now, now + SECOND_VISIT]),
                    Wake::End => return,
                }
            }
            self.round(now);
        }
    }

    fn next(&self) -> Instant {
        let readings = self.known.values().filter_map(|namespace| namespace.schedule.at).min();
        let next = [self.scan.at, readings, self.visits.first().copied()].into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + MAX_SCAN_PAUSE)
    }

    /// Reads the namespaces in which something has changed in the next round.
    fn read_soon(&mut self, change: Change, now: Instant) {
        for namespace in self.known.values_mut() {
            let is_meant = match change {
                Change::In(peer) => namespace.peer == Some(peer),
                Change::Anywhere => true,
            };
            if is_meant {
                namespace.schedule = Schedule::now(now);
            }
        }
    }

    /// Does everything that is due.
    fn round(&mut self, now: Instant) {
        if self.scan.is_due(now) {
            self.scan(now);
        }
        self.read(now);
        if self.visits.first().is_some_and(|at| *at <= now) {
            self.visits = self.visits.split_off(&(now + Duration::from_nanos(1)));
            self.visit_all(now);
        }
    }

    /// Reads the names and processes: namespaces that are new, and those that ended.
    fn scan(&mut self, now: Instant) {
        let watched = self.watch_names();
        let (found, named) = list(&self.folder);
        self.warn_once("names", named.and(watched).err().map(|error| self.no_names_warning(&error)));
        let before = self.known.len();
        self.known.retain(|id, _| found.contains_key(id));
        let mut changed = self.known.len() < before;
        for (id, path) in found {
            let is_notified = self.is_notified;
            let namespace = self.known.entry(id).or_insert_with(|| {
                changed = true;
                // The namespace gets its id before it is read first.
                let peer = if is_notified { peer_of(id, &path) } else { None };
                Namespace { path: path.clone(), peer, schedule: Schedule::now(now), addresses: None }
            });
            namespace.path = path;
        }
        self.scan.next(now, false, MAX_SCAN_PAUSE, false);
        if changed {
            debug!(namespaces = self.known.len(), "network namespaces were added or removed");
            self.publish();
        }
    }

    fn no_names_warning(&self, error: &io::Error) -> String {
        format!(
            "cannot read the names of network namespaces in {}: {error}. Without the namespaces of \
             pods, Services with loadBalancerSourceRanges refuse their sockets, and their UDP sockets \
             stay connected to removed endpoints. Name the folder with --netns-dir (in a container, \
             mount it with HostToContainer propagation)",
            self.folder.display()
        )
    }

    /// Starts watching the folder for new names, unless that is done already. The folder may be
    /// created after this process has started.
    fn watch_names(&mut self) -> io::Result<()> {
        if self.watcher.is_some() && self.folder.exists() {
            return Ok(());
        }
        let wake = self.wake.clone();
        let failed = |error: notify::Error| match error.kind {
            notify::ErrorKind::Io(error) => error,
            notify::ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
            _ => io::Error::other(error),
        };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the folder causes events too. They are ignored.
            let is_name = |kind| {
                matches!(
                    kind,
                    EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
                )
            };
            if event.map_or(true, |event| is_name(event.kind)) {
                let _ = wake.send(Wake::Names);
            }
        })
        .map_err(failed)?;
        self.watcher = None;
        watcher.watch(&self.folder, RecursiveMode::NonRecursive).map_err(failed)?;
        self.watcher = Some(watcher);
        Ok(())
    }

    /// Reads the addresses of each namespace whose time has come.
    fn read(&mut self, now: Instant) {
        let mut changed = false;
        let mut warning = None;
        self.known.retain(|id, namespace| {
            if !namespace.schedule.is_due(now) {
                return true;
            }
            match run_in(*id, &namespace.path, addresses).and_then(|result| result) {
                Ok(current) => {
                    let differs = namespace.addresses != Some(current);
                    changed |= differs;
                    namespace.addresses = Some(current);
                    let max_pause = match current.1 {
                        NO_ADDRESS => MAX_PAUSE_WITHOUT_ADDRESS,
                        _ => MAX_PAUSE_WITH_ADDRESS,
                    };
                    namespace.schedule.next(now, differs, max_pause, namespace.peer.is_some());
                    true
                }
                // The namespace ended, or its name belongs to another one, which the next scan
                // finds.
                Err(error) if is_gone(&error) => {
                    changed = true;
                    false
                }
                Err(error) => {
                    let path = namespace.path.display();
                    let needs = if is_not_permitted(&error) { NEEDS_SYS_ADMIN } else { "" };
                    warning =
                        Some(format!("network namespace {path}: cannot read its addresses: {error}{needs}"));
                    namespace.schedule.next(now, false, MAX_PAUSE_WITH_ADDRESS, false);
                    true
                }
            }
        });
        self.warn_once("addresses", warning);
        if changed {
            self.publish();
        }
    }

    /// Runs the visitor in every namespace.
    fn visit_all(&mut self, now: Instant) {
        let failed = |place: String, error| format!("{place}cannot {}, trying again: {error}", V::TASK);
        let mut warning = None;
        match self.visitor.prepare() {
            Ok(false) => {}
            Ok(true) => {
                for (id, namespace) in &self.known {
                    match run_in(*id, &namespace.path, || self.visitor.visit()).and_then(|done| done) {
                        Ok(()) => {}
                        Err(error) if is_gone(&error) => {}
                        Err(error) => {
                            let place = format!("network namespace {}: ", namespace.path.display());
                            warning = Some(failed(place, error));
                        }
                    }
                }
            }
            Err(error) => warning = Some(failed(String::new(), error)),
        }
        if warning.is_some() {
            self.visits.insert(now + MAX_SCAN_PAUSE);
        }
        self.warn_once("visit", warning);
    }

    fn publish(&self) {
        let known = self.known.values().filter_map(|namespace| namespace.addresses);
        let addresses: NamespaceAddresses = known.filter(|(_, addresses)| *addresses != NO_ADDRESS).collect();
        self.sender.send_if_modified(|current| {
            let changed = **current != addresses;
            if changed {
                *current = Arc::new(addresses);
            }
            changed
        });
    }

    /// Logs the warning of a topic, unless it was the last one. `None` ends the topic.
    fn warn_once(&mut self, topic: &'static str, warning: Option<String>) {
        match warning {
            None => drop(self.logged.remove(topic)),
            Some(warning) if self.logged.get(topic) != Some(&warning) => {
                warn!("{warning}");
                self.logged.insert(topic, warning);
            }
            Some(_) => {}
        }
    }
}

/// Returns how notifications name a namespace. Gives it an id if it has none.
fn peer_of(id: NamespaceId, path: &Path) -> Option<PeerId> {
    let peer = || -> io::Result<PeerId> {
        if NamespaceId::of(&fs::metadata("/proc/thread-self/ns/net")?) == id {
            return Ok(PeerId::Here);
        }
        peer_id(File::open(path)?.as_fd())
    };
    let no_id = |error: &io::Error| debug!(%error, path = %path.display(), "a network namespace has no id");
    peer().inspect_err(no_id).ok()
}

const NEEDS_SYS_ADMIN: &str = ". Without CAP_SYS_ADMIN, Services with loadBalancerSourceRanges refuse \
     the sockets of pods, and UDP sockets of pods stay connected to removed endpoints";
const NO_ADDRESS: NamespaceAddrs = NamespaceAddrs { addr_v4: [0; 4], addr_v6: [0; 16] };

/// Returns whether the error means that the path leads to no namespace any more: ESRCH or ENOENT
/// for a process that has ended, EINVAL for the plain file that unmounting leaves.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH))
        || error.kind() == io::ErrorKind::NotFound
}

/// Returns whether this process may not enter the namespace (setns(2)).
fn is_not_permitted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Returns the cookie and the main addresses of the namespace of the calling thread.
fn addresses() -> io::Result<(u64, NamespaceAddrs)> {
    let (v4, v6) = main_addresses().map_err(io::Error::other)?;
    let addr_v4 = v4.map_or([0; 4], |ip: Ipv4Addr| ip.octets());
    let addr_v6 = v6.map_or([0; 16], |ip: Ipv6Addr| ip.octets());
    Ok((namespace_cookie()?, NamespaceAddrs { addr_v4, addr_v6 }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::sync::Mutex;

    use super::super::super::testing::{add_veth, other_namespace};
    use super::*;

    /// Records the cookies of the namespaces that it visits.
    struct Cookies(Arc<Mutex<Vec<u64>>>);

    impl Visitor for Cookies {
        const TASK: &'static str = "record the cookie";

        fn prepare(&mut self) -> io::Result<bool> {
            Ok(true)
        }

        fn visit(&self) -> io::Result<()> {
            self.0.lock().expect("not poisoned").push(namespace_cookie()?);
            Ok(())
        }
    }

    async fn until(follower: &mut Follower, what: &str, seen: impl Fn(&NamespaceAddresses) -> bool) {
        let wait =
            tokio::time::timeout(Duration::from_secs(20), follower.addresses.wait_for(|all| seen(all)));
        wait.await.unwrap_or_else(|_| panic!("never saw {what}")).expect("the thread lives");
    }

    #[tokio::test]
    async fn new_addresses_and_removed_namespaces_are_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let netns = folder.path().join("netns");
        let visited = Arc::new(Mutex::new(Vec::new()));
        // The first pod of a node creates the folder, after the agent has started.
        let mut follower = follow(netns.clone(), Cookies(Arc::clone(&visited))).expect("started");
        fs::create_dir(&netns).expect("a folder");
        let namespace = other_namespace();
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        let number = run_in(id, path.as_ref(), namespace_cookie).expect("entered").expect("a cookie");
        symlink(&path, netns.join("pod")).expect("a name");
        assert!(!follower.addresses.borrow().contains_key(&number), "it has no address yet");

        run_in(id, path.as_ref(), || add_veth(&["192.0.2.9/24", "2001:db8::9/64"])).expect("entered");
        let wanted = NamespaceAddrs {
            addr_v4: [192, 0, 2, 9],
            addr_v6: "2001:db8::9".parse::<Ipv6Addr>().expect("valid").octets(),
        };
        until(&mut follower, "both addresses", |all| all.get(&number) == Some(&wanted)).await;

        follower.visit();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !visited.lock().expect("not poisoned").contains(&number) {
            assert!(Instant::now() < deadline, "never visited");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        fs::remove_file(netns.join("pod")).expect("removed");
        until(&mut follower, "the end of the namespace", |all| !all.contains_key(&number)).await;
    }

    #[test]
    fn pauses_double_until_something_changes() {
        let start = Instant::now();
        let mut schedule = Schedule::now(start);
        let mut now = start;
        let mut pauses = Vec::new();
        for changed in [false, false, false, true, false, false] {
            schedule.next(now, changed, Duration::from_millis(150), false);
            let next = schedule.at.expect("without notifications, it is read for ever");
            pauses.push(next.duration_since(now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [50, 100, 150, 50, 100, 150]);
    }

    #[test]
    fn with_notifications_readings_end_until_the_next_one() {
        let start = Instant::now();
        let mut schedule = Schedule::now(start);
        let mut pauses = Vec::new();
        while let Some(now) = schedule.at {
            schedule.next(now, false, Duration::from_millis(150), true);
            pauses.extend(schedule.at.map(|next| next.duration_since(now).as_millis()));
        }
        assert_eq!(pauses, [50, 100]);
    }

    #[tokio::test]
    async fn a_notification_causes_a_reading() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = other_namespace();
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        symlink(&path, folder.path().join("pod")).expect("a name");
        let (wake, woken) = channel();
        let mut changes = Changes::open().expect("this test needs root");
        let now = Instant::now();
        let mut worker = Worker {
            is_notified: true,
            folder: folder.path().to_owned(),
            visitor: Cookies(Arc::default()),
            known: BTreeMap::new(),
            scan: Schedule::now(now),
            visits: BTreeSet::new(),
            watcher: None,
            wake,
            logged: BTreeMap::new(),
            sender: watch::channel(Arc::default()).0,
        };
        worker.round(now);
        let unscheduled = Schedule { at: None, pause: FIRST_PAUSE };
        worker.known.get_mut(&id).expect("found").schedule = unscheduled;
        let of_pod = worker.known[&id].peer.expect("an id");

        run_in(id, path.as_ref(), || add_veth(&["192.0.2.9/24"])).expect("entered");
        while changes.next().await.expect("a notification") != Change::In(of_pod) {}
        worker.round(now);
        assert_eq!(worker.known[&id].addresses.map(|(_, read)| read), Some(NO_ADDRESS), "not read again");
        worker.read_soon(Change::In(of_pod), now);
        worker.round(now);
        let read = worker.known[&id].addresses.map(|(_, addresses)| addresses.addr_v4);
        assert_eq!(read, Some([192, 0, 2, 9]));
        drop(woken);
    }
}
