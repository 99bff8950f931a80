//! Keeps a [`NodeState`] up to date.
//!
//! A notification says only *that* something changed; then everything is read again. So a lost notification (the kernel
//! drops them when a socket buffer is full) costs nothing but time: the state is read every [`REFRESH`] in any case,
//! which also catches what is not notified here (a default route that moves to another device).

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

use super::{NodeError, NodeState, read};

/// The state is read at least this often.
const REFRESH: Duration = Duration::from_secs(10);
/// And at most this often: starting a pod makes a dozen notifications.
const GATHER: Duration = Duration::from_millis(50);

/// Reads the state of the network namespace of the calling thread, and follows it until every receiver is dropped.
/// The receiver is woken only when something changed.
///
/// Needs a tokio runtime whose threads are in the same namespace.
pub async fn watch() -> Result<watch::Receiver<Arc<NodeState>>, NodeError> {
    let mut reader = Reader::open()?;
    let (sender, receiver) = watch::channel(Arc::new(reader.read().await?));
    tokio::spawn(async move {
        loop {
            match follow(&mut reader, &sender).await {
                Ok(()) => return,
                Err(error) => warn!(%error, "lost sight of devices and addresses, looking again"),
            }
            sleep(Duration::from_secs(1)).await;
            match Reader::open() {
                Ok(again) => reader = again,
                Err(error) => warn!(%error, "cannot look at devices and addresses"),
            }
        }
    });
    Ok(receiver)
}

/// Reads the state once.
pub async fn read_once() -> Result<NodeState, NodeError> {
    Reader::open()?.read().await
}

/// The addresses that processes in the network namespace of the calling thread speak with. Not to be called by a thread of a
/// tokio runtime.
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

/// Two sockets: notifications that overflow theirs cannot disturb what is read through the other.
struct Reader {
    handle: rtnetlink::Handle,
    notifications: Notifications,
    drivers: HashMap<(u32, String), Option<String>>,
    connections: [tokio::task::JoinHandle<()>; 2],
}

impl Reader {
    fn open() -> Result<Self, NodeError> {
        // Notifications first: what changes after the first reading is notified.
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (notifier, _, notifications) =
            rtnetlink::new_multicast_connection(&groups).map_err(NodeError::Socket)?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NodeError::Socket)?;
        let connections = [tokio::spawn(notifier), tokio::spawn(connection)];
        Ok(Self { handle, notifications, drivers: HashMap::new(), connections })
    }

    async fn read(&mut self) -> Result<NodeState, NodeError> {
        read::node_state(&self.handle, &mut self.drivers).await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.abort();
        }
    }
}

/// Returns Ok when nobody listens any more.
async fn follow(reader: &mut Reader, sender: &watch::Sender<Arc<NodeState>>) -> Result<(), NodeError> {
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return Ok(()),
            _ = refresh.tick() => {}
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
    use super::super::devices::{DeviceOptions, Programs, choose};
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

        // A NIC as in kind: one end here, the other one elsewhere.
        handle.link().add(LinkVeth::new("eth0", "peer0").build()).execute().await.expect("veth");
        until(&mut receiver, "eth0 and its peer", |state| index(state, "peer0").is_some()).await;
        let state = receiver.borrow_and_update().clone();
        let [eth0, peer0] = ["eth0", "peer0"].map(|name| index(&state, name).expect("seen"));
        assert_eq!(state.device(eth0).map(|device| device.lower), Some(Some(peer0)));
        let away = LinkUnspec::new_with_index(peer0).setns_by_fd(elsewhere.as_raw_fd()).build();
        handle.link().set(away).execute().await.expect("moved");
        handle
            .link()
            .set(LinkUnspec::new_with_index(eth0).up().mtu(1400).build())
            .execute()
            .await
            .expect("up");
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
        assert_eq!((device.up, device.mtu, device.link_layer), (true, 1400, LinkLayer::Ethernet));
        assert_eq!(state.main_v4.map(|ip| ip.to_string()).as_deref(), Some("192.0.2.7"));
        assert_eq!(state.main_v6.map(|ip| ip.to_string()).as_deref(), Some("2001:db8::7"));
        let choice = |state: &NodeState, name: &str| {
            choose(state, &DeviceOptions::default())
                .into_iter()
                .find(|choice| choice.name == name)
                .map(|c| c.programs)
        };
        assert_eq!(choice(&state, "eth0"), Some(Programs::Tc));

        // A tunnel that appears later, and goes.
        handle
            .link()
            .add(LinkVxlan::new("flannel.1", 1).dev(eth0).port(8472).up().build())
            .execute()
            .await
            .expect("vxlan");
        until(&mut receiver, "flannel.1", |state| choice(state, "flannel.1") == Some(Programs::Tc)).await;
        let flannel = index(&receiver.borrow_and_update(), "flannel.1").expect("seen");
        handle.link().del(flannel).execute().await.expect("deleted");
        until(&mut receiver, "flannel.1 gone", |state| state.device(flannel).is_none()).await;
        handle.link().set(LinkUnspec::new_with_index(eth0).down().build()).execute().await.expect("down");
        until(&mut receiver, "eth0 down", |state| choice(state, "eth0") == Some(Programs::None)).await;
    }

    #[test]
    fn follows_devices_and_addresses() {
        // A thread of its own: its namespace must not be that of other tests.
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
