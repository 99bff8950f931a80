//! Checks the packets that `lb explain` builds with the dissector, which shares no code with it.

use lb_testbed::packet::{Link, dissect, render, verify};
use lb_userspace::probe::packet::{AddressArg, PacketProtocol, ProbePacket};

const PROTOCOLS: [PacketProtocol; 4] =
    [PacketProtocol::Tcp, PacketProtocol::Udp, PacketProtocol::Sctp, PacketProtocol::Icmp];

fn frame(protocol: PacketProtocol, source: &str, destination: &str) -> Vec<u8> {
    let argument = |text: &str, port| AddressArg { ip: text.parse().unwrap(), port };
    let ports = if protocol == PacketProtocol::Icmp { [None; 2] } else { [Some(5000), Some(80)] };
    ProbePacket::new(protocol, argument(source, ports[0]), argument(destination, ports[1])).unwrap().build()
}

#[test]
fn every_length_and_checksum_is_correct() {
    for (source, destination) in [("10.1.2.3", "10.96.0.10"), ("fd00::1", "fd00:96::10")] {
        for protocol in PROTOCOLS {
            let wrong = verify(&frame(protocol, source, destination), Link::Ethernet);
            assert!(wrong.is_empty(), "{protocol:?} to {destination}: {wrong:?}");
        }
    }
}

#[test]
fn the_packets_open_a_connection() {
    let packets = PROTOCOLS.map(|protocol| {
        let layers = dissect(&frame(protocol, "10.1.2.3", "10.96.0.10"), Link::Ethernet);
        render(&layers[1..])
    });
    assert_eq!(
        packets,
        [
            "ip 10.1.2.3 > 10.96.0.10 df / tcp 5000 > 80 S seq=1 win=65535",
            "ip 10.1.2.3 > 10.96.0.10 df / udp 5000 > 80",
            "ip 10.1.2.3 > 10.96.0.10 df / sctp 5000 > 80 / 0x0100001400000001000100000001000100000001",
            "ip 10.1.2.3 > 10.96.0.10 df / icmp echo rest=0x00010001",
        ]
    );
}
