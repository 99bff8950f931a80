//! Keeps a [`NodeState`] up to date.
//!
//! After a notification the whole state is read again. The content of a notification is not used,
//! so a lost one only causes a delay: the state is read every [`REFRESH`] in any case. (The kernel
//! drops notifications if a socket buffer is full.) The periodic reading also notices changes
//! without a notification here, such as a default route that moves to another device.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

use super::{NodeError, NodeState, ipsec, read};

/// Maximum time between two readings.
const REFRESH: Duration = Duration::from_secs(10);
/// Time to wait for more notifications before the state is read. Starting a pod causes a dozen.
const GATHER: Duration = Duration::from_millis(50);

/// Reads the state of the network namespace of the calling thread, and watches it until every
/// receiver is dropped. The receiver is notified only of changes.
///
/// The threads of the tokio runtime must be in the same namespace.
pub async fn watch() -> Result<watch::Receiver<Arc<NodeState>>, NodeError> {
    let mut reader = HostReader::open()?;
    let (sender, receiver) = watch::channel(Arc::new(reader.read().await?));
    tokio::spawn(async move {
        loop {
            match follow(&mut reader, &sender).await {
                Ok(()) => return,
                Err(error) => warn!(%error, "cannot read devices and addresses, trying again"),
            }
            sleep(Duration::from_secs(1)).await;
            match HostReader::open() {
                Ok(mut again) => {
                    again.saw_kube_proxy = reader.saw_kube_proxy;
                    reader = again;
                }
                Err(error) => warn!(%error, "cannot watch devices and addresses, trying again"),
            }
        }
    });
    Ok(receiver)
}

/// Reads the state once.
pub async fn read_once() -> Result<NodeState, NodeError> {
    HostReader::open()?.read().await
}

/// Returns the main addresses of the network namespace of the calling thread, which must not be a
/// thread of a tokio runtime.
pub fn main_addresses() -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), NodeError> {
    let (v4, v6) = read::default_sources();
    if v4.is_some() && v6.is_some() {
        return Ok((v4, v6));
    }
    let runtime = Builder::new_current_thread().enable_all().build().map_err(NodeError::Socket)?;
    let state = runtime.block_on(read_once())?;
    Ok((state.main_v4, state.main_v6))
}

type Notifications = futures::channel::mpsc::UnboundedReceiver<(
    rtnetlink::packet_core::NetlinkMessage<rtnetlink::packet_route::RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
)>;

/// Reads the state. Notifications have a socket of their own: if its buffer overflows, reading is
/// not disturbed.
struct HostReader {
    handle: rtnetlink::Handle,
    notifications: Notifications,
    policies: ipsec::Changes,
    drivers: HashMap<(u32, String), Option<String>>,
    saw_kube_proxy: bool,
    connections: [tokio::task::JoinHandle<()>; 2],
}

impl HostReader {
    fn open() -> Result<Self, NodeError> {
        // Subscribe before the first reading: every later change causes a notification.
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (notifier, _, notifications) =
            rtnetlink::new_multicast_connection(&groups).map_err(NodeError::Socket)?;
        let policies = ipsec::Changes::open();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NodeError::Socket)?;
        let connections = [tokio::spawn(notifier), tokio::spawn(connection)];
        let (drivers, saw_kube_proxy) = (HashMap::new(), false);
        Ok(Self { handle, notifications, policies, drivers, saw_kube_proxy, connections })
    }

    async fn read(&mut self) -> Result<NodeState, NodeError> {
        let mut state = read::node_state(&self.handle, &mut self.drivers).await?;
        self.saw_kube_proxy |= !state.without_kube_proxy;
        state.without_kube_proxy = !self.saw_kube_proxy;
        Ok(state)
    }
}

impl Drop for HostReader {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.abort();
        }
    }
}

/// Publishes every change. Returns `Ok` when all receivers are dropped.
async fn follow(reader: &mut HostReader, sender: &watch::Sender<Arc<NodeState>>) -> Result<(), NodeError> {
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return Ok(()),
            _ = refresh.tick() => {}
            changed = reader.policies.next() => changed.map_err(NodeError::Socket)?,
            notification = reader.notifications.next() => {
                if notification.is_none() {
                    return Err(NodeError::Socket(std::io::ErrorKind::ConnectionAborted.into()));
                }
                sleep(GATHER).await;
                while reader.notifications.try_recv().is_ok() {}
            }
        }
        let state = reader.read().await?;
        let changed = sender.send_if_modified(|current| {
            let changed = **current != state;
            if changed {
                *current = Arc::new(state);
            }
            changed
        });
        if changed {
            debug!("devices or addresses changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::os::fd::AsRawFd;

    use rtnetlink::{LinkUnspec, LinkVeth, LinkVxlan};
    use tokio::time::timeout;

    use super::super::LinkLayer;
    use super::super::devices::{DeviceOptions, Hooks, choose_devices};
    use super::super::testing::{enter_new_namespace, other_namespace};
    use super::*;

    async fn until(
        receiver: &mut watch::Receiver<Arc<NodeState>>,
        what: &str,
        seen: impl Fn(&NodeState) -> bool,
    ) {
        let wait = timeout(Duration::from_secs(20), receiver.wait_for(|state| seen(state)));
        wait.await.unwrap_or_else(|_| panic!("never saw {what}")).expect("the watcher lives");
    }

    async fn scenario() {
        let elsewhere = other_namespace();
        let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
        tokio::spawn(connection);
        let mut receiver = watch().await.expect("readable");
        let at_start = receiver.borrow_and_update().clone();
        assert!(
            at_start.devices.iter().all(|device| device.name == "lo" || !device.up),
            "a new namespace is empty"
        );
        let index =
            |state: &NodeState, name: &str| state.devices.iter().find(|d| d.name == name).map(|d| d.index);

        // A NIC as in kind: a veth whose other end is in another namespace.
        handle.link().add(LinkVeth::new("eth0", "peer0").build()).execute().await.expect("veth");
        until(&mut receiver, "eth0 and its peer", |state| index(state, "peer0").is_some()).await;
        let state = receiver.borrow_and_update().clone();
        let [eth0, peer0] = ["eth0", "peer0"].map(|name| index(&state, name).expect("seen"));
        assert_eq!(state.device(eth0).map(|device| device.lower), Some(Some(peer0)));
        let away = LinkUnspec::new_with_index(peer0).setns_by_fd(elsewhere.as_raw_fd()).build();
        handle.link().set(away).execute().await.expect("moved");
        handle.link().set(LinkUnspec::new_with_index(eth0).up().build()).execute().await.expect("up");
        for ip in ["192.0.2.7", "2001:db8::7"] {
            let ip: IpAddr = ip.parse().expect("valid");
            let mut request = handle.address().add(eth0, ip, if ip.is_ipv4() { 24 } else { 64 });
            if ip.is_ipv6() {
                request.message_mut().header.flags =
                    rtnetlink::packet_route::address::AddressHeaderFlags::from_bits_retain(0x02); // IFA_F_NODAD
            }
            request.execute().await.expect("address");
        }
        until(&mut receiver, "both addresses", |state| {
            state.main_v4.is_some() && state.main_v6.is_some() && index(state, "peer0").is_none()
        })
        .await;
        let state = receiver.borrow_and_update().clone();
        let device = state.device(eth0).expect("seen");
        assert_eq!(
            (device.kind.as_deref(), device.lower, device.lower_elsewhere),
            (Some("veth"), None, true)
        );
        assert_eq!((device.up, device.link_layer), (true, LinkLayer::Ethernet));
        assert_eq!(state.main_v4.map(|ip| ip.to_string()).as_deref(), Some("192.0.2.7"));
        assert_eq!(state.main_v6.map(|ip| ip.to_string()).as_deref(), Some("2001:db8::7"));
        let choice = |state: &NodeState, name: &str| {
            choose_devices(state, &DeviceOptions::default())
                .into_iter()
                .find(|choice| choice.name == name)
                .map(|choice| choice.hooks)
        };
        assert_eq!(choice(&state, "eth0"), Some(Hooks::Tc));

        // A tunnel that is created later, and deleted.
        handle
            .link()
            .add(LinkVxlan::new("flannel.1", 1).dev(eth0).port(8472).up().build())
            .execute()
            .await
            .expect("vxlan");
        until(&mut receiver, "flannel.1", |state| choice(state, "flannel.1") == Some(Hooks::Tc)).await;
        let flannel = index(&receiver.borrow_and_update(), "flannel.1").expect("seen");
        handle.link().del(flannel).execute().await.expect("deleted");
        until(&mut receiver, "flannel.1 deleted", |state| state.device(flannel).is_none()).await;
        handle.link().set(LinkUnspec::new_with_index(eth0).down().build()).execute().await.expect("down");
        until(&mut receiver, "eth0 down", |state| choice(state, "eth0") == Some(Hooks::None)).await;
    }

    #[test]
    fn follows_devices_and_addresses() {
        // A thread of its own: other tests must not share its namespace.
        let thread = std::thread::spawn(|| {
            enter_new_namespace();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(scenario());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
