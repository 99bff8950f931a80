//! Reads small HTTP responses of programs on this node.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The time limit of each step.
const LIMIT: Duration = Duration::from_secs(2);
/// The size limit of a response. The metrics of an agent have some 100 KiB.
const MAX_RESPONSE: u64 = 8 << 20;

/// Sends an HTTP GET request. Returns the status, and the body without surrounding white space.
pub fn get(path: &str, server: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the response is not HTTP");
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(invalid)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    Ok((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one response and returns what [`get`] reads from it.
    fn served(response: &'static str) -> io::Result<(u16, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serve = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            // Closing with unread input would reset the connection under the response.
            let _ = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
            stream.write_all(response.as_bytes()).unwrap();
            request
        });
        let answer = get("/proxyMode", server);
        assert_eq!(serve.join().unwrap(), "GET /proxyMode HTTP/1.0");
        answer
    }

    #[test]
    fn status_and_body_are_returned() {
        assert_eq!(served("HTTP/1.0 200 OK\r\nX: y\r\n\r\nnftables\n").unwrap(), (200, "nftables".into()));
        assert_eq!(served("HTTP/1.0 404 Not Found\r\n\r\niptables").unwrap(), (404, "iptables".into()));
        assert!(served("SSH-2.0-x\r\n").is_err());
    }
}
