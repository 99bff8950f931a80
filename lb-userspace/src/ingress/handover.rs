//! Hands the listening sockets over to the next process of this node, so that an update loses no
//! connection.
//!
//! Both processes then accept from the same queues: a connection that waits in one is not lost when
//! the old process ends. (With `SO_REUSEPORT` each process would have a queue of its own, and the
//! kernel resets the connections in it when the process ends, unless the sysctl
//! `net.ipv4.tcp_migrate_req` is set.)
//!
//! The next process connects to a UNIX socket and receives one message with the sockets
//! (`SCM_RIGHTS`). It keeps the connection open: if it ends before the old process does, the old
//! one answers the probes again.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, info, warn};

/// The first byte of the message. Another format gets another one.
const VERSION: u8 = 1;

/// The listening sockets of a proxy.
#[derive(Debug)]
pub(super) struct Sockets {
    pub http: TcpListener,
    pub https: TcpListener,
    pub admin: TcpListener,
}

/// The sockets of the process before, which notices when this one is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub sockets: Vec<TcpListener>,
    pub connection: UnixStream,
}

impl Received {
    /// Takes the socket with this address.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let has_address = |socket: &TcpListener| socket.local_addr().is_ok_and(|found| found == address);
        let index = self.sockets.iter().position(has_address)?;
        Some(self.sockets.swap_remove(index))
    }
}

/// Returns the sockets of the process that serves `path`. Returns `None` if no process does, or if
/// it has another format.
pub(super) async fn receive(path: &Path) -> Option<Received> {
    let connection = match UnixStream::connect(path).await {
        Ok(connection) => connection,
        Err(error) => {
            debug!(path = %path.display(), %error, "no process hands sockets over");
            return None;
        }
    };
    let message = connection.async_io(Interest::READABLE, || receive_message(connection.as_fd())).await;
    match message {
        Ok(sockets) if !sockets.is_empty() => {
            info!(sockets = sockets.len(), "the process before has handed its sockets over");
            Some(Received { sockets, connection })
        }
        Ok(_) => {
            warn!("the process at --handover hands no sockets over that this version can use");
            None
        }
        Err(error) => {
            warn!(%error, "cannot receive the sockets of the process at --handover");
            None
        }
    }
}

fn receive_message(connection: BorrowedFd<'_>) -> io::Result<Vec<TcpListener>> {
    let mut version = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(connection, &mut [IoSliceMut::new(&mut version)], &mut ancillary, flags)?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    // Sockets of another format are closed.
    Ok(if version == [VERSION] { sockets.into_iter().map(TcpListener::from).collect() } else { Vec::new() })
}

fn send_message(connection: BorrowedFd<'_>, sockets: &Sockets) -> io::Result<()> {
    let descriptors = [&sockets.http, &sockets.https, &sockets.admin].map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(connection, &[IoSlice::new(&[VERSION])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Serves `path` from now on, in place of the process before.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // A connection gets a socket of the old process or of this one, never none.
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}", std::process::id()));
    let staged = PathBuf::from(staged);
    let _ = fs::remove_file(&staged);
    let listener = UnixListener::bind(&staged)?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
    fs::rename(&staged, path)?;
    Ok(listener)
}

/// Waits for the next process and sends it the sockets. Returns the connection to it.
pub(super) async fn hand_over(listener: &UnixListener, sockets: &Sockets) -> UnixStream {
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                warn!(%error, "cannot accept a connection at --handover");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        // The sockets are those of this user only.
        let peer = connection.peer_cred().map(|peer| peer.uid());
        if !peer.is_ok_and(|uid| uid == rustix::process::geteuid().as_raw()) {
            warn!("a process of another user connected to --handover: it gets no sockets");
            continue;
        }
        let sent =
            connection.async_io(Interest::WRITABLE, || send_message(connection.as_fd(), sockets)).await;
        match sent {
            Ok(()) => return connection,
            Err(error) => warn!(%error, "cannot hand the sockets over"),
        }
    }
}

/// Waits until the other process ends.
pub(super) async fn ended(connection: &UnixStream) {
    let mut byte = [0];
    loop {
        match connection.readable().await.and_then(|()| connection.try_read(&mut byte)) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn sockets() -> Sockets {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        Sockets { http: bind(), https: bind(), admin: bind() }
    }

    #[tokio::test]
    async fn a_waiting_connection_survives_the_process_that_listened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        assert!(receive(&path).await.is_none(), "no process serves it");
        let (old, listener) = (sockets(), listen(&path).unwrap());
        let address = old.http.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (sent, received) = tokio::join!(hand_over(&listener, &old), receive(&path));
        let mut received = received.unwrap();
        drop(old);
        let http = received.take(address).unwrap();
        assert!(received.take(address).is_none());
        let mut server = http.accept().unwrap().0;
        server.write_all(b"x").unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        // The old process notices the end of the new one.
        drop(received);
        ended(&sent).await;
    }

    #[tokio::test]
    async fn the_last_process_that_listens_hands_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let (first, second) = (sockets(), sockets());
        let _old = listen(&path).unwrap();
        let new = listen(&path).unwrap();
        let (_, received) = tokio::join!(hand_over(&new, &second), receive(&path));
        let mut received = received.unwrap();
        assert!(received.take(first.http.local_addr().unwrap()).is_none());
        assert!(received.take(second.admin.local_addr().unwrap()).is_some());
    }
}
