//! Captured packets are dissected and rebuilt, and properties are checked for any bytes.

use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Frames of the kernel (6.18, checksum offload off, `tcpdump -xx` between two namespaces) and
/// their text.
const CAPTURED: [(&str, &str); 7] = [
    (
        "0200 0000 000b 0200 0000 000a 0800 4500 0021 c2ae 4000 4011 f412 c000 0209 c000 0201 9c40 0035 000d 9b81 6865 6c6c 6f",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 192.0.2.9 > 192.0.2.1 id=49838 df / udp 40000 > 53 / \"hello\"",
    ),
    (
        "0200 0000 000a 0200 0000 000b 0800 45c0 003d b9fa 0000 4001 3bfb c000 0201 c000 0209 0303 8126 0000 0000
         4500 0021 c2ae 4000 4011 f412 c000 0209 c000 0201 9c40 0035 000d 9b81 6865 6c6c 6f",
        "eth 02:00:00:00:00:0b > 02:00:00:00:00:0a / ip 192.0.2.1 > 192.0.2.9 tos=192 id=47610 / icmp port-unreachable / \
         ip 192.0.2.9 > 192.0.2.1 id=49838 df / udp 40000 > 53 / \"hello\"",
    ),
    (
        "0200 0000 000b 0200 0000 000a 0800 4500 003c cf10 4000 4006 e7a0 c000 0209 c000 0201 9c41 0050 010e b4ec 0000 0000
         a002 faf0 0350 0000 0204 05b4 0402 080a 7596 fd8e 0000 0000 0103 030a",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 192.0.2.9 > 192.0.2.1 id=53008 df / \
         tcp 40001 > 80 S seq=17741036 win=64240 options=0x020405b40402080a7596fd8e000000000103030a",
    ),
    (
        "0200 0000 000a 0200 0000 000b 0800 4500 0028 0000 4000 4006 b6c5 c000 0201 c000 0209 0050 9c41 0000 0000 010e b4ed
         5014 0000 d938 0000",
        "eth 02:00:00:00:00:0b > 02:00:00:00:00:0a / ip 192.0.2.1 > 192.0.2.9 df / tcp 80 > 40001 RA ack=17741037 win=0",
    ),
    (
        "0200 0000 000b 0200 0000 000a 86dd 600a 629a 000d 1140 2001 0db8 0000 0000 0000 0000 0000 0009 2001 0db8 0000 0000
         0000 0000 0000 0001 9c40 0035 000d c410 6865 6c6c 6f",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 2001:db8::9 > 2001:db8::1 flow=680602 / udp 40000 > 53 / \"hello\"",
    ),
    (
        "0200 0000 000a 0200 0000 000b 86dd 6007 c75b 003d 3a40 2001 0db8 0000 0000 0000 0000 0000 0001 2001 0db8 0000 0000
         0000 0000 0000 0009 0104 cf34 0000 0000 600a 629a 000d 1140 2001 0db8 0000 0000 0000 0000 0000 0009 2001 0db8 0000
         0000 0000 0000 0000 0001 9c40 0035 000d c410 6865 6c6c 6f",
        "eth 02:00:00:00:00:0b > 02:00:00:00:00:0a / ip 2001:db8::1 > 2001:db8::9 flow=509787 / icmp port-unreachable / \
         ip 2001:db8::9 > 2001:db8::1 flow=680602 / udp 40000 > 53 / \"hello\"",
    ),
    (
        "0200 0000 000b 0200 0000 000a 86dd 600f 8697 0028 0640 2001 0db8 0000 0000 0000 0000 0000 0009 2001 0db8 0000 0000
         0000 0000 0000 0001 9c41 0050 37ce 75bb 0000 0000 a002 fd20 3b14 0000 0204 05a0 0402 080a 75d6 f46e 0000 0000 0103
         030a",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 2001:db8::9 > 2001:db8::1 flow=1017495 / \
         tcp 40001 > 80 S seq=936277435 win=64800 options=0x020405a00402080a75d6f46e000000000103030a",
    ),
];

#[test]
fn captured_packets_dissect_to_their_text_and_build_back() {
    for (captured, text) in CAPTURED {
        let bytes = hex(captured);
        assert_eq!(render(&dissect(&bytes, Link::Ethernet)), text);
        assert_eq!(build(&parse(text).unwrap()), bytes, "{text}");
        assert_eq!(verify(&bytes, Link::Ethernet), Vec::<String>::new(), "{text}");
    }
}

/// Every byte of these frames is covered by a checksum or shown in the text.
#[test]
fn a_changed_byte_changes_the_text() {
    for (captured, text) in CAPTURED {
        let bytes = hex(captured);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_ne!(render(&dissect(&changed, Link::Ethernet)), text, "byte {at}");
        }
    }
}

#[test]
fn verify_reports_a_flipped_bit_under_every_checksum() {
    for (text, at, wrong) in [
        ("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 / bytes 9", 8, "IPv4 header checksum is wrong"),
        ("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 / bytes 9", 30, "UDP checksum is wrong"),
        ("ip 10.0.0.1 > 10.0.0.2 options=0x01010100 / tcp 1 > 2 PA / bytes 9", 50, "TCP checksum is wrong"),
        (
            "ip 2001:db8::1 > 2001:db8::2 / hop-by-hop / destination / tcp 1 > 2 S",
            58,
            "TCP checksum is wrong",
        ),
        ("ip 2001:db8::1 > 2001:db8::2 / icmp echo id=1 / bytes 5", 50, "ICMP checksum is wrong"),
        ("ip 10.0.0.1 > 10.0.0.2 / icmp echo id=1 / bytes 5", 30, "ICMP checksum is wrong"),
        ("ip 10.0.0.1 > 10.0.0.2 / sctp 1 > 2 tag=9 / bytes 8", 34, "SCTP CRC32c is wrong"),
    ] {
        let mut bytes = build(&parse(text).unwrap());
        assert_eq!(verify(&bytes, Link::None), Vec::<String>::new(), "{text}");
        bytes[at] ^= 1;
        assert_eq!(verify(&bytes, Link::None), [wrong], "{text}");
    }
}

#[test]
fn verify_reports_wrong_lengths_and_missing_headers() {
    for (text, wrong) in [
        ("ip 10.0.0.1 > 10.0.0.2 len=99 / udp 1 > 2", "IPv4 total length 99 exceeds the packet"),
        ("ip 2001:db8::1 > 2001:db8::2 len=99 / udp 1 > 2", "IPv6 payload length 99 exceeds the packet"),
        ("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 len=9", "UDP length 9 is not the length of the datagram"),
        (
            "ip 2001:db8::1 > 2001:db8::2 / udp 1 > 2 csum=none",
            "UDP checksum is zero, which IPv6 does not allow",
        ),
        ("ip 10.0.0.1 > 10.0.0.2 proto=6 / 0x0001", "TCP header is truncated"),
        ("ip 2001:db8::1 > 2001:db8::2 / hop-by-hop next=132 / 0x0001", "SCTP header is truncated"),
        ("ip 10.0.0.1 > 10.0.0.2 / ports 6 1 > 2 / 0x00", "transport header is truncated"),
    ] {
        let bytes = build(&parse(text).unwrap());
        let found = verify(&bytes, Link::None);
        assert!(found.iter().any(|found| found == wrong), "{text}: {found:?}");
    }
    assert_eq!(verify(&[1, 2, 3], Link::Ethernet), ["link header is truncated"]);
}

#[test]
fn quoted_packets_are_verified_as_far_as_they_are_quoted() {
    let text = "ip 10.0.0.1 > 10.0.0.2 / icmp too-big rest=0x00000578 / ip 10.0.0.2 > 10.0.0.1 csum=faulty / tcp 1 > 2 A csum=faulty";
    let bytes = build(&parse(text).unwrap());
    assert_eq!(
        verify(&bytes, Link::None),
        ["quoted IPv4 header checksum is wrong", "quoted TCP checksum is wrong"]
    );
    let text = "ip 10.0.0.1 > 10.0.0.2 / icmp too-big quote=28 / ip 10.0.0.2 > 10.0.0.1 / tcp 1 > 2 A";
    let bytes = build(&parse(text).unwrap());
    assert_eq!(bytes.len(), 20 + 8 + 28);
    assert_eq!(verify(&bytes, Link::None), Vec::<String>::new());
    assert!(
        render(&dissect(&bytes, Link::None))
            .ends_with("ip 10.0.0.2 > 10.0.0.1 len=40 / ports 6 1 > 2 / zeros 4")
    );
}

#[test]
fn udp_checksum_zero_means_none_and_a_computed_zero_is_sent_as_ffff() {
    let none = build(&parse("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 csum=none / bytes 4").unwrap());
    assert_eq!(none[26..28], [0, 0]);
    assert_eq!(verify(&none, Link::None), Vec::<String>::new());
    // With its checksum as payload, the sum of the datagram becomes ffff and its checksum zero.
    let open = build(&parse("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 / 0x0000").unwrap());
    let text = format!("ip 10.0.0.1 > 10.0.0.2 / udp 1 > 2 / 0x{:02x}{:02x}", open[26], open[27]);
    let ones = build(&parse(&text).unwrap());
    assert_eq!(ones[26..28], [0xff, 0xff]);
    assert_eq!(verify(&ones, Link::None), Vec::<String>::new());
}

#[test]
fn pieces_join_to_the_whole_datagram() {
    for (piece, header, fields) in
        [("ip 10.0.0.1 > 10.0.0.2 id=7", "", 20), ("ip 2001:db8::1 > 2001:db8::2", " / fragment id=7", 48)]
    {
        let rest = "udp 1 > 2 / bytes 300";
        let whole = build(&parse(&format!("{piece}{header} / {rest}")).unwrap());
        let mut joined = whole[..fields].to_vec();
        for (range, more) in [("0-104", true), ("104-208", true), ("208-400", false)] {
            let bytes = build(&parse(&format!("{piece}{header} piece={range} / {rest}")).unwrap());
            let text = render(&dissect(&bytes, Link::None));
            let offset = range.split('-').next().unwrap();
            assert!(text.contains(&format!("frag={offset}{} ", if more { "+" } else { "" })), "{text}");
            assert_eq!(verify(&bytes, Link::None), Vec::<String>::new(), "{text}");
            joined.extend(&bytes[fields..]);
        }
        assert_eq!(joined[fields..], whole[fields..]);
    }
}

#[test]
fn parse_errors_name_the_layer_and_the_problem() {
    for (text, problem) in [
        (
            "ip 10.0.0.1 > 2001:db8::1",
            "packet layer `ip 10.0.0.1 > 2001:db8::1`: the addresses have different families",
        ),
        (
            "ip 10.0.0.1 > 10.0.0.2 / udp 1 > 70000",
            "packet layer `udp 1 > 70000`: `70000` is not a number, or too large",
        ),
        (
            "ip 10.0.0.1 > 10.0.0.2 speed=3",
            "packet layer `ip 10.0.0.1 > 10.0.0.2 speed=3`: unknown option `speed=3`",
        ),
        ("icmp echo", "packet layer `icmp echo`: it needs an IP header before it"),
        ("gre", "packet layer `gre`: unknown layer"),
        ("tcp 1 > 2 SX", "packet layer `tcp 1 > 2 SX`: unknown flag X: use letters of FSRPAUEC"),
        ("udp 1", "packet layer `udp 1`: a field is missing at the end"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), problem);
    }
}

/// Generates frames with a valid header chain, some bytes of which are changed or cut off.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let heads = prop::sample::select(vec![
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / vlan 3 / ip 10.0.0.1 > 10.0.0.2 options=0x01010100 / tcp 1 > 2 SA mss=1460",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 10.0.0.1 > 10.0.0.2 id=3 df / udp 1 > 2 / bytes 12 / trailer 0x000000",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 2001:db8::1 > 2001:db8::2 / hop-by-hop / routing / fragment id=4 / sctp 1 > 2",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 2001:db8::1 > 2001:db8::2 / authentication / icmp too-big / ip 2001:db8::2 > 2001:db8::1 / udp 1 > 2",
        "eth 02:00:00:00:00:0a > 02:00:00:00:00:0b / ip 10.0.0.1 > 10.0.0.2 / icmp time-exceeded / ip 10.0.0.2 > 10.0.0.1 / sctp 1 > 2 / zeros 8",
    ]);
    (
        heads,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(head, changes, cut, whole)| {
            let mut bytes = build(&parse(head).unwrap());
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_frame_dissects_and_builds_back(bytes in frames()) {
        prop_assert_eq!(build(&dissect(&bytes, Link::Ethernet)), bytes);
    }

    #[test]
    fn every_frame_renders_and_parses_back(bytes in frames()) {
        let text = render(&dissect(&bytes, Link::Ethernet));
        prop_assert_eq!(build(&parse(&text).unwrap()), bytes, "{}", text);
    }

    #[test]
    fn any_bytes_dissect_and_build_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(&build(&dissect(&bytes, Link::Ethernet)), &bytes);
        prop_assert_eq!(&build(&dissect(&bytes, Link::None)), &bytes);
    }
}
