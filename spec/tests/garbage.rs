//! Random and damaged bytes never panic a decoder, and what a decoder takes it can say again:
//! proptest finds the smallest input that breaks either.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use zex_spec::*;

/// The kinds of §5 and some that do not exist.
fn kind() -> impl Strategy<Value = u8> {
    prop_oneof![0x00..=0x08u8, 0x10..=0x19u8, 0x20..=0x24u8, 0x30..=0x34u8, 0x40..=0x46u8]
}

/// MessagePack that is nearly a header: values of the types that headers have, in some order.
fn nearly_a_header() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        (0..=0x7fu8).prop_map(|n| vec![n]),
        any::<u8>().prop_map(|n| vec![0xcc, n]),
        any::<u32>().prop_map(|n| [vec![0xce], n.to_be_bytes().to_vec()].concat()),
        any::<u64>().prop_map(|n| [vec![0xcf], n.to_be_bytes().to_vec()].concat()),
        any::<i8>().prop_map(|n| vec![0xd0, n as u8]),
    ];
    let other = prop_oneof![
        Just(vec![0xc2]),
        Just(vec![0xc3]),
        Just(vec![0xc0]),
        any::<[u8; 16]>().prop_map(|key| [&[0xc4, 16], &key[..]].concat()),
        vec(any::<u8>(), 0..40).prop_map(|b| [&[0xc4, b.len() as u8], &b[..]].concat()),
        "[a-z.]{0,31}".prop_map(|s| [&[0xa0 | s.len() as u8], s.as_bytes()].concat()),
        vec(any::<u8>(), 1..4),
    ];
    let leaf = prop_oneof![3 => number, 4 => other];
    let array = |items: Vec<Vec<u8>>| [vec![0x90 | items.len() as u8], items.concat()].concat();
    let value = leaf.prop_recursive(3, 24, 6, move |inner| vec(inner, 0..6).prop_map(array));
    vec(value, 0..8).prop_map(array)
}

fn frame(kind: u8, flags: u16, header: &[u8], body: &[u8], lie: i8) -> Bytes {
    let mut frame = [&MAGIC[..], &[VERSION, kind], &flags.to_be_bytes(), &[0; 2]].concat();
    let said = (header.len() as u32).saturating_add_signed(i32::from(lie));
    frame.extend(said.to_be_bytes());
    frame.extend([0; 36]);
    frame.extend(header);
    frame.extend(body);
    frame.into()
}

/// Whatever decodes must encode to frames that decode to the same.
fn check(frames: Vec<Bytes>) -> std::result::Result<(), TestCaseError> {
    if let Ok(packet) = Packet::decode(frames) {
        let (first, rest) = packet.encode();
        let again = Packet::decode([first.into()].into_iter().chain(rest).collect());
        prop_assert_eq!(again, Ok(packet));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn random_frames(frames in vec(vec(any::<u8>(), 0..200), 0..8)) {
        let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
        check(frames.clone())?;
        // Nobody reads the results: these must come back at all.
        let _ = ez::decode_request(&frames);
        let _ = ez::decode_from_worker(&frames);
        let _ = ez::decode_answer(&frames);
        for frame in &frames {
            let _ = Prefix::decode(frame);
            let _ = Address::decode(frame);
            let _ = Address::owner_of(frame);
        }
    }

    #[test]
    fn a_good_prefix_and_a_nearly_good_header(
        kind in kind(),
        flags in 0..16u16,
        header in prop_oneof![nearly_a_header(), vec(any::<u8>(), 0..80)],
        body in vec(any::<u8>(), 0..4),
        more in vec(vec(any::<u8>(), 0..4), 0..3),
        lie in prop_oneof![9 => Just(0i8), 1 => any::<i8>()],
    ) {
        let first = frame(kind, flags, &header, &body, lie);
        check([first].into_iter().chain(more.into_iter().map(Bytes::from)).collect())?;
    }

    #[test]
    fn a_damaged_message(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let messages = messages();
        let (mut first, rest) = which.get(&messages).encode();
        for (at, byte) in changes {
            let at = at.index(first.len());
            first[at] = byte;
        }
        if let Some(cut) = cut {
            first.truncate(cut.index(first.len()));
        }
        let _ = Prefix::decode(&first);
        check([first.into()].into_iter().chain(rest).collect())?;
    }

    #[test]
    fn ez_frames(
        tags in vec(prop_oneof![Just(vec![]), Just(vec![1]), Just(vec![2]), vec(any::<u8>(), 0..300)], 0..9),
    ) {
        let frames: Vec<Bytes> = tags.into_iter().map(Bytes::from).collect();
        if let Ok(request) = ez::decode_request(&frames) {
            prop_assert_eq!(ez::encode_request(&request), frames.clone());
        }
        if let Ok((id, body)) = ez::decode_answer(&frames) {
            prop_assert_eq!(ez::encode_answer(id, body), frames.clone());
        }
        let _ = ez::decode_from_worker(&frames);
    }

    #[test]
    fn addresses(data in vec(any::<u8>(), 0..300), dialect in 0..3u8) {
        let mut data = data;
        if let Some(at) = data.get_mut(24) {
            *at = dialect;
        }
        let data = Bytes::from(data);
        if let Ok(address) = Address::decode(&data) {
            prop_assert_eq!(address.encode(), data.clone());
            prop_assert_eq!(Address::owner_of(&data), Some(address.owner));
        }
    }
}

/// One message of each shape that a header can have.
fn messages() -> Vec<Packet> {
    let (address, key) = (Bytes::from_static(&[7; 41]), Key([9; 16]));
    let call = Call {
        key,
        service: "a.B".into(),
        method: "C".into(),
        deadline_ms: 70_000,
        attempt: 1,
        age_ms: 1_003,
        options: Options::WAIT,
        priority: 4,
        metadata: Metadata::new([("a", "b"), ("c-bin", "\u{e9}")]).expect("it travels"),
    };
    let reply = Reply {
        address: address.clone(),
        key,
        code: 5,
        message: "not here".into(),
        chunks: 0,
        headers: call.metadata.clone(),
        trailers: call.metadata.clone(),
    };
    let register =
        Register { name: "w".into(), version: 1, capacity: 8, services: vec!["a.B".into(); 3] };
    let held = Held { owner: Incarnation(1 << 40), seen: 300, numbers: vec![1, 299] };
    let heartbeat = Heartbeat { version: 1, held: vec![held.clone(), held] };
    let counts = vec![(PeerId([3; 16]), 2); 3];
    let share = Share { sequence: 70_000, snapshot: true, counts, age_us: 5_000 };
    let beat = BrokerBeat { ready: true, goodbye: false };
    let body = || Bytes::from_static(b"body");
    let owner = Steer::Owner(Incarnation(5));
    let mut packets = vec![
        Packet::from_peer(Steer::Home(ServiceHash::of(b"a.B")), call, body()),
        Packet::from_peer(owner, reply, Bytes::from(vec![1; INLINE_BODY_BYTES + 1])),
        Packet::from_peer(
            owner,
            Chunk { address, key, number: 2, end: true, headers: Default::default() },
            body(),
        ),
        Packet::from_peer(Steer::All, register, Bytes::new()),
        Packet::from_peer(Steer::All, heartbeat, Bytes::new()),
        Packet::from_peer(owner, share, Bytes::new()),
        Packet::from_peer(owner, beat, Bytes::new()),
    ];
    let ez = EzCall { peer: body(), id: body(), service: body() };
    let mut ez = Packet::from_peer(Steer::Home(ServiceHash::of(b"body")), ez, Bytes::new());
    ez.body = Body::Frames(vec![body(), Bytes::new()]);
    packets.push(ez);
    packets
}
