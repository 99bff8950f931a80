//! The log level of a running agent: `lb log-level` sends a new one.
//!
//! The agent listens on a Unix socket with an abstract name, because its file systems are
//! read-only. Such a socket exists in one network namespace, that of the node, and has no
//! permissions. So the agent accepts messages of its own user alone (`SO_PEERCRED`).

use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

/// The name of the socket. There is one agent in a network namespace.
const NAME: &str = "sluice-log-level";
/// The connection ends if the peer is slower.
const LIMIT: Duration = Duration::from_secs(2);
/// Maximum length of a message.
const LONGEST: u64 = 1024;
/// The answer when the level was changed.
const CHANGED: &str = "changed";

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Receives levels on a thread of its own, and passes each to `change`, which returns the reason if
/// it refuses one.
pub fn listen(change: impl Fn(&str) -> Result<(), String> + Send + 'static) -> io::Result<()> {
    let listener = UnixListener::bind_addr(&address()?)?;
    std::thread::Builder::new().name("log-level".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // The peer may be gone.
            let _ = answer(stream, &change);
        }
    })?;
    Ok(())
}

fn answer(mut stream: UnixStream, change: impl Fn(&str) -> Result<(), String>) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    if socket_peercred(&stream)?.uid != geteuid() {
        return stream.write_all(b"only the user of the agent may change its log level");
    }
    let mut level = String::new();
    (&stream).take(LONGEST).read_to_string(&mut level)?;
    match change(level.trim()) {
        Ok(()) => stream.write_all(CHANGED.as_bytes()),
        Err(reason) => stream.write_all(reason.as_bytes()),
    }
}

/// The log level of the agent was not changed.
#[derive(Debug, thiserror::Error)]
pub enum LogLevelError {
    #[error("no agent runs in this network namespace, or it cannot be reached")]
    NoAgent(#[source] io::Error),
    #[error("the agent refused the log level: {0}")]
    Refused(String),
    #[error("the agent did not answer")]
    NoAnswer(#[source] io::Error),
}

/// Sends a level to the agent of this network namespace.
pub fn send(level: &str) -> Result<(), LogLevelError> {
    let connect = || UnixStream::connect_addr(&address()?);
    let mut stream = connect().map_err(LogLevelError::NoAgent)?;
    let mut exchange = || {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(level.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        (&stream).take(LONGEST).read_to_string(&mut answer)?;
        Ok(answer)
    };
    match exchange().map_err(LogLevelError::NoAnswer)?.as_str() {
        CHANGED => Ok(()),
        reason => Err(LogLevelError::Refused(reason.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::node::testing::enter_new_namespace;

    #[test]
    fn a_level_reaches_the_agent_of_the_network_namespace() {
        let test = || {
            enter_new_namespace();
            assert!(matches!(send("debug"), Err(LogLevelError::NoAgent(_))));
            let (sender, levels) = mpsc::channel();
            listen(move |level| {
                sender.send(level.to_owned()).map_err(|error| error.to_string())?;
                if level == "loud" { Err("no such level".to_owned()) } else { Ok(()) }
            })
            .expect("a socket");
            send("debug").expect("changed");
            let refused = send("loud").expect_err("refused").to_string();
            assert_eq!(refused, "the agent refused the log level: no such level");
            assert_eq!(levels.try_iter().collect::<Vec<_>>(), ["debug", "loud"]);
            listen(|_| Ok(())).expect_err("there is one agent");
        };
        std::thread::spawn(test).join().expect("the test passes");
    }
}
