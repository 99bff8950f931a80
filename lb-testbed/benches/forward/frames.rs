//! The frames of clients and endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail, ensure};
use lb_common::traffic::{CLIENTS_V4, CLIENTS_V6, FRAME, WORDS};
use lb_testbed::Family;
use lb_testbed::packet::layer::Mac;
use lb_testbed::packet::{Layer, Link, build, dissect, parse, verify};

/// The first source port of clients, and the number of ports.
const FIRST_PORT: u32 = 16_384;
const PORTS: u32 = 16_384;
/// Offsets of the payload.
const PAYLOAD_V4: usize = 42;
const PAYLOAD_V6: usize = 62;

/// A frame of the length that all have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame([u8; FRAME]);

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Target {
    pub gateway: Mac,
    pub node: Mac,
    pub address: IpAddr,
    pub port: u16,
}

impl Frame {
    /// Returns the request of a client. `client` makes its address and port, `number` is in the
    /// payload.
    pub fn request(target: &Target, client: u32, number: u32) -> Result<Self> {
        let Target { gateway, node, address, port } = target;
        let source = client_address(Family::of(*address), client / PORTS);
        let source_port = FIRST_PORT + client % PORTS;
        let mut layers = parse(&format!(
            "eth 02:00:00:00:00:01 > 02:00:00:00:00:02 / ip {source} > {address} / udp {source_port} > {port}"
        ))?;
        let payload = FRAME - if address.is_ipv4() { PAYLOAD_V4 } else { PAYLOAD_V6 };
        let mut data = number.to_be_bytes().to_vec();
        data.resize(payload, 0);
        layers.push(Layer::Data(data));
        if let Some(Layer::Ethernet(header)) = layers.first_mut() {
            (header.source, header.destination) = (*gateway, *node);
        }
        Self::from_bytes(&build(&layers))
    }

    /// Returns the reply to this request, as it arrives at the node from the next node.
    pub fn reply(&self, next_node: Mac, node: Mac) -> Result<Self> {
        let mut layers = dissect(&self.0, Link::Ethernet);
        for layer in &mut layers {
            match layer {
                Layer::Ethernet(header) => (header.source, header.destination) = (next_node, node),
                Layer::Ipv4(header) => std::mem::swap(&mut header.source, &mut header.destination),
                Layer::Ipv6(header) => std::mem::swap(&mut header.source, &mut header.destination),
                Layer::Udp(header) => std::mem::swap(&mut header.source, &mut header.destination),
                Layer::Data(_) => {}
                other => bail!("a frame that left the node has {other:?}"),
            }
        }
        Self::from_bytes(&build(&layers))
    }

    /// Returns an error if a receiver would reject the frame.
    pub fn check(&self) -> Result<()> {
        let faults = verify(&self.0, Link::Ethernet);
        ensure!(faults.is_empty(), "a frame that left the node is faulty: {}", faults.join(", "));
        Ok(())
    }

    /// Returns whether nothing was stored here.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; FRAME]
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() == FRAME, "a frame of {} bytes", bytes.len());
        let mut frame = [0; FRAME];
        frame.copy_from_slice(bytes);
        Ok(Self(frame))
    }

    pub fn from_words(words: [u32; WORDS]) -> Self {
        let mut frame = [0; FRAME];
        for (bytes, word) in frame.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self(frame)
    }

    pub fn words(&self) -> [u32; WORDS] {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }
}

fn client_address(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => {
            let [first, second] = CLIENTS_V4;
            let base = u32::from(Ipv4Addr::new(first, second, 0, 0));
            Ipv4Addr::from(base + number % (1 << 17)).into()
        }
        Family::V6 => {
            let base = u128::from(u32::from_be_bytes(CLIENTS_V6)) << 96;
            Ipv6Addr::from(base + u128::from(number)).into()
        }
    }
}
