//! A server that costs little: it returns what it receives, over TCP and UDP.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// How many connections a thread keeps open after its answer. So the client, which closes when it
/// has the answer, closes first and keeps the connection in TIME_WAIT.
const KEPT: usize = 256;

/// How long a client may take to send its request.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// The number of threads that accept connections. A slow client delays one of them.
const THREADS: usize = 4;

/// Binds the address with both protocols, and serves it in threads of this process.
pub fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let socket = UdpSocket::bind(address)?;
    for _ in 0..THREADS {
        let listener = listener.try_clone()?;
        thread::spawn(move || accept(&listener));
    }
    thread::spawn(move || answer_datagrams(&socket));
    Ok(())
}

fn accept(listener: &TcpListener) {
    let mut kept = VecDeque::new();
    loop {
        // A connection that the client has given up before it was accepted is left out.
        let Ok((mut stream, _)) = listener.accept() else { continue };
        if answer(&mut stream).is_ok() {
            kept.push_back(stream);
        }
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let mut request = [0; 512];
    let length = stream.read(&mut request)?;
    stream.write_all(&request[..length])
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut datagram = [0; 2048];
    loop {
        // `recv_from` also returns the ICMP error that an earlier answer caused.
        let Ok((length, client)) = socket.recv_from(&mut datagram) else { continue };
        let _ = socket.send_to(&datagram[..length], client);
    }
}
