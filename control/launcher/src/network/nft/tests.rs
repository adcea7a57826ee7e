//! The encoder against what nftables 1.0.6 sent to the kernel for `like-nft.rules`, byte by byte. The fixture was
//! recorded with `strace -e write=3 nft -f like-nft.rules`.

use super::*;

const RECORDED: &[u8] = include_bytes!("like-nft.bin");

fn table() -> Table {
    Table {
        bridge: "wharf0".to_owned(),
        subnet: "172.26.64.0/24".parse().expect("a subnet"),
    }
}

fn port() -> Mapping {
    Mapping {
        host: 20080,
        to: 8080,
        address: Ipv4Addr::new(172, 26, 64, 2),
        alloc: "5c0f0a52-8d3c-4f6e-9a1f-0123456789ab".to_owned(),
    }
}

#[test]
fn every_byte_is_that_of_nft() {
    let mut ours = Vec::new();
    for (sequence, message) in framed(table().body(&[port()])).iter().enumerate() {
        let from = ours.len();
        message.encode(u32::try_from(sequence).expect("few"), &mut ours);
        assert_eq!(
            &ours[from..],
            RECORDED.get(from..ours.len()).expect("no shorter"),
            "message {sequence}, from byte {from}"
        );
    }
    assert_eq!(ours.len(), RECORDED.len());
}

#[test]
fn a_subnet_within_a_byte_is_masked() {
    let odd = Table {
        subnet: "172.26.64.0/20".parse().expect("a subnet"),
        ..table()
    };
    let masked = odd
        .body(&[])
        .iter()
        .map(Message::encoded_len)
        .sum::<usize>();
    let whole = table()
        .body(&[])
        .iter()
        .map(Message::encoded_len)
        .sum::<usize>();
    assert!(masked > whole, "{masked} {whole}");
}

#[test]
fn the_comment_of_a_listed_rule_says_whose_it_is() {
    let mut bytes = Vec::new();
    let rules = port_rules("wharf_wharf0", &[port()]);
    rules[0].encode(1, &mut bytes);
    // What is listed also has a handle.
    let mut payload = bytes[16..].to_vec();
    payload.extend_from_slice(&[12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(encode::listed_rule(&payload), Some((7, port().alloc)));
    for end in 0..payload.len() {
        let cut = encode::listed_rule(&payload[..end]);
        assert_eq!(cut, None, "a rule without its handle, {end} bytes of it");
    }
}
