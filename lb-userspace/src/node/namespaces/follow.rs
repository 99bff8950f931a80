//! A thread that keeps up with the namespaces of this node and the addresses in them, and visits them all when asked to.
//!
//! The kernel tells of new names, by inotify; of what is mounted there a moment later, and of addresses that come after that,
//! it tells nobody outside. So what has changed is looked at again soon, and ever more seldom while it stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::layout::NamespaceAddrs;
use lb_datapath::namespace_cookie;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{NamespaceId, enumerate, inside};
use crate::node::watch::main_addresses;

/// How soon something is looked at again that has just changed.
const SOONEST: Duration = Duration::from_millis(50);
/// Names, processes: at least this often.
const LATEST_SCAN: Duration = Duration::from_secs(10);
/// A namespace without any address, which still waits for its network.
const LATEST_WITHOUT_ADDRESS: Duration = Duration::from_secs(5);
const LATEST_WITH_ADDRESS: Duration = Duration::from_secs(30);
/// When a visit is repeated: what was under way during the first one has come to its end by then.
const AGAIN: Duration = Duration::from_secs(1);

/// The addresses that the processes of each namespace speak with, by the namespace's cookie. Those without any are left out.
pub type Addresses = BTreeMap<u64, NamespaceAddrs>;

/// What is done in every namespace when [`Follower::visit`] asks for it.
pub trait Visitor: Send + Sync {
    /// What it does, for messages: `cannot …`.
    const TASK: &'static str;
    /// Called first; false: there is nothing to do anywhere.
    fn prepare(&mut self) -> io::Result<bool>;
    /// Called on a thread that is in the namespace.
    fn visit(&self) -> io::Result<()>;
}

/// The thread ends when this is dropped.
pub struct Follower {
    pub addresses: watch::Receiver<Arc<Addresses>>,
    wake: Sender<Wake>,
}

impl Follower {
    /// Asks for a visit of every namespace, and for another one a second later; does not wait.
    pub fn visit(&self) {
        // The thread lives as long as this does.
        let _ = self.wake.send(Wake::Visit);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::End);
    }
}

enum Wake {
    /// A name was made or removed.
    Names,
    Visit,
    End,
}

/// Looks at all namespaces once, and starts the thread that goes on with it.
pub fn follow(folder: PathBuf, visitor: impl Visitor + 'static) -> io::Result<Follower> {
    let (wake, woken) = channel();
    let (sender, addresses) = watch::channel(Arc::default());
    let now = Instant::now();
    let mut worker = Worker {
        folder,
        visitor,
        known: BTreeMap::new(),
        scan: Schedule::soon(now),
        visits: BTreeSet::new(),
        watcher: None,
        wake: wake.clone(),
        said: BTreeMap::new(),
        sender,
    };
    worker.round(now);
    thread::Builder::new().name("namespaces".to_owned()).spawn(move || worker.run(&woken))?;
    Ok(Follower { addresses, wake })
}

/// When something is looked at.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    at: Instant,
    pause: Duration,
}

impl Schedule {
    fn soon(now: Instant) -> Self {
        Self { at: now, pause: SOONEST }
    }

    /// It was looked at.
    fn next(&mut self, now: Instant, changed: bool, latest: Duration) {
        if changed {
            self.pause = SOONEST;
        }
        self.at = now + self.pause;
        self.pause = (self.pause * 2).min(latest);
    }
}

struct Known {
    path: PathBuf,
    look: Schedule,
    /// Cookie and addresses; none before the first look.
    seen: Option<(u64, NamespaceAddrs)>,
}

struct Worker<V> {
    folder: PathBuf,
    visitor: V,
    known: BTreeMap<NamespaceId, Known>,
    scan: Schedule,
    /// When visits are due.
    visits: BTreeSet<Instant>,
    watcher: Option<RecommendedWatcher>,
    wake: Sender<Wake>,
    /// By topic, what was last said to be wrong.
    said: BTreeMap<&'static str, String>,
    sender: watch::Sender<Arc<Addresses>>,
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
                    Wake::Names => self.scan = Schedule::soon(now),
                    Wake::Visit => self.visits.extend([now, now + AGAIN]),
                    Wake::End => return,
                }
            }
            self.round(now);
        }
    }

    fn next(&self) -> Instant {
        let looks = self.known.values().map(|known| known.look.at).min();
        [Some(self.scan.at), looks, self.visits.first().copied()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.scan.at)
    }

    /// Does what is due.
    fn round(&mut self, now: Instant) {
        if self.scan.at <= now {
            self.scan(now);
        }
        self.look(now);
        if self.visits.first().is_some_and(|at| *at <= now) {
            self.visits = self.visits.split_off(&(now + Duration::from_nanos(1)));
            self.visit_all(now);
        }
    }

    fn scan(&mut self, now: Instant) {
        let watched = self.watch_names();
        let (found, named) = enumerate(&self.folder);
        self.say("names", named.and(watched).err().map(|error| {
            format!(
                "the network namespaces named in {} are not seen: {error}; without those of pods their sockets are refused by \
                 Services with loadBalancerSourceRanges, and UDP sockets stay connected to endpoints that are gone; give the \
                 folder with --netns-dir (in a container: mount it, with HostToContainer propagation)",
                self.folder.display()
            )
        }));
        let before = self.known.len();
        self.known.retain(|id, _| found.contains_key(id));
        let mut changed = self.known.len() < before;
        for (id, path) in found {
            let new = Known { path: path.clone(), look: Schedule::soon(now), seen: None };
            let known = self.known.entry(id).or_insert_with(|| {
                changed = true;
                new
            });
            known.path = path;
        }
        self.scan.next(now, false, LATEST_SCAN);
        if changed {
            debug!(namespaces = self.known.len(), "namespaces came or went");
            self.publish();
        }
    }

    /// Sees to it that new names are noticed at once. The folder may be there later than this process.
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
            // Being looked at makes events too.
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

    /// Reads addresses where it is time to.
    fn look(&mut self, now: Instant) {
        let mut changed = false;
        let mut trouble = None;
        self.known.retain(|id, known| {
            if known.look.at > now {
                return true;
            }
            match inside(*id, &known.path, addresses).and_then(|seen| seen) {
                Ok(seen) => {
                    let differs = known.seen != Some(seen);
                    changed |= differs;
                    known.seen = Some(seen);
                    let latest =
                        if seen.1 == NO_ADDRESS { LATEST_WITHOUT_ADDRESS } else { LATEST_WITH_ADDRESS };
                    known.look.next(now, differs, latest);
                    true
                }
                // Gone, or another one has its name: the next scan says which.
                Err(error) if is_gone(&error) => {
                    changed = true;
                    false
                }
                Err(error) => {
                    trouble = Some(format!(
                        "network namespace {}: cannot read its addresses: {error}",
                        known.path.display()
                    ));
                    known.look.next(now, false, LATEST_WITH_ADDRESS);
                    true
                }
            }
        });
        self.say("addresses", trouble);
        if changed {
            self.publish();
        }
    }

    fn visit_all(&mut self, now: Instant) {
        let failed = |place: String, error| format!("{place}cannot {}, trying again: {error}", V::TASK);
        let mut trouble = None;
        match self.visitor.prepare() {
            Ok(false) => {}
            Ok(true) => {
                for (id, known) in &self.known {
                    match inside(*id, &known.path, || self.visitor.visit()).and_then(|done| done) {
                        Ok(()) => {}
                        Err(error) if is_gone(&error) => {}
                        Err(error) => {
                            let place = format!("network namespace {}: ", known.path.display());
                            trouble = Some(failed(place, error));
                        }
                    }
                }
            }
            Err(error) => trouble = Some(failed(String::new(), error)),
        }
        if trouble.is_some() {
            self.visits.insert(now + LATEST_SCAN);
        }
        self.say("visit", trouble);
    }

    fn publish(&self) {
        let seen =
            self.known.values().filter_map(|known| known.seen).filter(|(_, addrs)| *addrs != NO_ADDRESS);
        let addresses: Addresses = seen.collect();
        self.sender.send_if_modified(|current| {
            let changed = **current != addresses;
            if changed {
                *current = Arc::new(addresses);
            }
            changed
        });
    }

    /// Says what is wrong with a topic, once.
    fn say(&mut self, topic: &'static str, trouble: Option<String>) {
        match trouble {
            None => drop(self.said.remove(topic)),
            Some(trouble) if self.said.get(topic) != Some(&trouble) => {
                warn!("{trouble}");
                self.said.insert(topic, trouble);
            }
            Some(_) => {}
        }
    }
}

const NO_ADDRESS: NamespaceAddrs = NamespaceAddrs { addr_v4: [0; 4], addr_v6: [0; 16] };

/// The path leads to no namespace any more. A process that ended leaves ESRCH or ENOENT, an unmounted name a plain file.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH))
        || error.kind() == io::ErrorKind::NotFound
}

/// Cookie and addresses of the calling thread's namespace.
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

    /// Notes where it has been.
    struct Cookies(Arc<Mutex<Vec<u64>>>);

    impl Visitor for Cookies {
        const TASK: &'static str = "be here";

        fn prepare(&mut self) -> io::Result<bool> {
            Ok(true)
        }

        fn visit(&self) -> io::Result<()> {
            self.0.lock().expect("not poisoned").push(namespace_cookie()?);
            Ok(())
        }
    }

    async fn until(follower: &mut Follower, what: &str, seen: impl Fn(&Addresses) -> bool) {
        let wait =
            tokio::time::timeout(Duration::from_secs(20), follower.addresses.wait_for(|all| seen(all)));
        wait.await.unwrap_or_else(|_| panic!("never saw {what}")).expect("the thread lives");
    }

    #[tokio::test]
    async fn addresses_are_seen_when_they_come_and_namespaces_when_they_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let netns = folder.path().join("netns");
        let visited = Arc::new(Mutex::new(Vec::new()));
        // The folder is made later, as by the first pod of a node.
        let mut follower = follow(netns.clone(), Cookies(Arc::clone(&visited))).expect("started");
        fs::create_dir(&netns).expect("a folder");
        let namespace = other_namespace();
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        let number = inside(id, path.as_ref(), namespace_cookie).expect("entered").expect("a cookie");
        symlink(&path, netns.join("pod")).expect("a name");
        assert!(!follower.addresses.borrow().contains_key(&number), "it has no address yet");

        inside(id, path.as_ref(), || add_veth(&["192.0.2.9/24", "2001:db8::9/64"])).expect("entered");
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
    fn what_stays_as_it_is_is_looked_at_ever_more_seldom() {
        let start = Instant::now();
        let mut schedule = Schedule::soon(start);
        let mut now = start;
        let mut pauses = Vec::new();
        for changed in [false, false, false, true, false, false] {
            schedule.next(now, changed, Duration::from_millis(150));
            pauses.push(schedule.at.duration_since(now).as_millis());
            now = schedule.at;
        }
        assert_eq!(pauses, [50, 100, 150, 50, 100, 150]);
    }
}
