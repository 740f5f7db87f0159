//! Runs `vectors/*.json` against this crate: valid frames decode to the fields that stand beside
//! them and encode to the same bytes again; malformed ones are refused with the right error.
//!
//! `vectors/README.md` explains the notation. The fields are compared as JSON, which
//! [`fields`] makes of a message.

use bytes::Bytes;
use serde_json::{Value, json};
use zex_spec::*;

/// What a file of vectors holds, with its name for messages.
fn load(file: &str) -> Value {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let list = value[field].as_array().unwrap_or_else(|| panic!("no list {field} in {value}"));
    assert!(
        !list.is_empty() || ["frames", "brokers", "entries"].contains(&field),
        "{field} is empty"
    );
    list
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text {field} in {value}"))
}

/// Bytes in the notation of the vectors: hexadecimal, blanks and bars for the eye, `(61*8193)`.
fn bytes(notation: &str) -> Bytes {
    let byte = |hex: &str| u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("no hex: {hex}"));
    let mut out = Vec::new();
    let mut rest = notation.replace([' ', '|'], "");
    while !rest.is_empty() {
        let taken = if rest.starts_with('(') {
            let end = rest.find(')').expect("a bracket closes");
            let (what, times) = rest[1..end].split_once('*').expect("(byte*times)");
            out.resize(out.len() + times.parse::<usize>().expect("a number"), byte(what));
            end + 1
        } else {
            out.push(byte(&rest[..2]));
            2
        };
        rest.drain(..taken);
    }
    out.into()
}

fn all_bytes(notations: &[Value]) -> Vec<Bytes> {
    notations.iter().map(|one| bytes(one.as_str().expect("bytes are text"))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn word(value: &Value, field: &str) -> u64 {
    u64::from_str_radix(text(value, field), 16).expect("16 hexadecimal digits")
}

/// Undoes the notation inside of a value: bytes stand as plain hexadecimal.
fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains('(') => json!(hex(&bytes(text))),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        other => other.clone(),
    }
}

fn incarnation(of: Incarnation) -> String {
    format!("{:016x}", of.0)
}

fn held(held: &Held) -> Value {
    let Held { owner, seen, numbers } = held;
    json!({ "owner": incarnation(*owner), "seen": seen, "numbers": numbers })
}

/// The header of a message as the vectors write it, which leave out metadata where there is none, as
/// the wire does.
fn fields(message: &Message) -> Value {
    let mut fields = fields_but_metadata(message);
    let mut add = |name: &str, metadata: &Metadata| {
        if !metadata.is_empty() {
            fields[name] = json!(hex(metadata.as_bytes()));
        }
    };
    match message {
        Message::Call(m) => add("metadata", &m.metadata),
        Message::Work(m) => add("metadata", &m.metadata),
        Message::Chunk(m) => add("headers", &m.headers),
        Message::Reply(m) => {
            add("headers", &m.headers);
            add("trailers", &m.trailers);
        }
        _ => {}
    }
    fields
}

fn fields_but_metadata(message: &Message) -> Value {
    match message {
        Message::Call(m) => json!({
            "key": m.key.to_string(), "service": m.service, "method": m.method,
            "deadline_ms": m.deadline_ms, "attempt": m.attempt, "age_ms": m.age_ms,
            "options": m.options.0, "priority": m.priority,
        }),
        Message::Work(m) => json!({
            "address": hex(&m.address), "key": m.key.to_string(), "service": m.service,
            "method": m.method, "deadline_ms": m.deadline_ms, "attempt": m.attempt,
            "options": m.options.0,
        }),
        Message::Reply(m) => json!({
            "address": hex(&m.address), "key": m.key.to_string(), "code": m.code,
            "message": m.message, "chunks": m.chunks,
        }),
        Message::Chunk(m) => json!({
            "address": hex(&m.address), "key": m.key.to_string(), "number": m.number, "end": m.end,
        }),
        Message::Cancel(Cancel { key }) | Message::Accepted(Accepted { key }) => {
            json!({ "key": key.to_string() })
        }
        Message::Credit(m) => json!({ "key": m.key.to_string(), "upto": m.upto }),
        Message::Busy(m) => json!({ "address": hex(&m.address), "key": m.key.to_string() }),
        Message::Ask(m) => {
            json!({ "key": m.key.to_string(), "attempt": m.attempt, "number": m.number })
        }
        Message::Answer(m) => json!({ "key": m.key.to_string(), "knowledge": m.knowledge.0 }),
        Message::Register(m) => json!({
            "name": m.name, "version": m.version, "capacity": m.capacity, "services": m.services,
        }),
        Message::Heartbeat(m) => {
            json!({ "version": m.version, "held": m.held.iter().map(held).collect::<Vec<_>>() })
        }
        Message::BrokerDown(_) | Message::Goodbye(_) | Message::Enquire(_) => json!({}),
        Message::BrokerBeat(m) => json!({ "ready": m.ready, "goodbye": m.goodbye }),
        Message::PipeBeat(m) => json!({ "pipe": incarnation(m.pipe) }),
        Message::PeerGone(m) => json!({ "peer": hex(&m.peer) }),
        Message::Hello(m) => json!({
            "name": m.name, "ready": m.ready, "sequence": m.sequence, "goodbye": m.goodbye,
        }),
        Message::Share(m) => {
            let count = |(worker, assigned): &(PeerId, u32)| json!({ "worker": worker.to_string(), "assigned": assigned });
            let counts: Vec<_> = m.counts.iter().map(count).collect();
            json!({ "sequence": m.sequence, "snapshot": m.snapshot, "counts": counts, "age_us": m.age_us })
        }
        Message::WantSnapshot(m) => json!({ "of": incarnation(m.of) }),
        Message::EzCall(m) => {
            json!({ "peer": hex(&m.peer), "id": hex(&m.id), "service": hex(&m.service) })
        }
        Message::EzAnswer(m) => json!({ "peer": hex(&m.peer), "id": hex(&m.id) }),
        Message::EzBeat(m) => {
            let held: Vec<_> = m.held.iter().map(held).collect();
            json!({ "peer": hex(&m.peer), "service": hex(&m.service), "held": held })
        }
        Message::EzWork(EzWork { peer, address, id })
        | Message::EzReply(EzReply { peer, address, id }) => {
            json!({ "peer": hex(peer), "address": hex(address), "id": hex(id) })
        }
    }
}

/// A whole packet as the vectors write it, without its name and frames.
fn describe(packet: &Packet) -> Value {
    let steer = match packet.steer {
        Steer::All => json!("all"),
        Steer::Home(hash) => json!({ "home": format!("{:016x}", hash.0) }),
        Steer::Owner(broker) => json!({ "owner": incarnation(broker) }),
    };
    let bounced = if packet.full { json!("full") } else { json!(packet.bounced) };
    let body = match &packet.body {
        Body::Bytes(body) => json!(hex(body)),
        Body::Frames(frames) => frames.iter().map(|frame| json!(hex(frame))).collect(),
    };
    json!({
        "message": packet.message.name(), "steer": steer, "pipe": incarnation(packet.pipe),
        "peer": packet.peer.to_string(), "bounced": bounced,
        "header": fields(&packet.message), "body": body,
    })
}

/// Decodes every vector of a file and compares the fields; hands back the packets with the frames
/// they came in.
fn decode_all(file: &str) -> Vec<(String, Vec<Bytes>, Packet)> {
    let decode = |vector: &Value| {
        let name = format!("{file}: {}", text(vector, "name"));
        let frames = all_bytes(list(vector, "frames"));
        let packet =
            Packet::decode(frames.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut expected = plain(vector);
        let expected_fields = expected.as_object_mut().expect("a vector is an object");
        expected_fields.remove("name");
        expected_fields.remove("frames");
        assert_eq!(describe(&packet), expected, "{name}");
        (name, frames, packet)
    };
    list(&load(file), "vectors").iter().map(decode).collect()
}

/// The class of an error as the vectors name it.
fn class(error: &Malformed) -> &'static str {
    match error {
        Malformed::Short { .. } => "short",
        Malformed::Magic => "magic",
        Malformed::Version(_) => "version",
        Malformed::HeaderTooLong(_) => "header-too-long",
        Malformed::Kind(_) => "kind",
        Malformed::Header { .. } => "header",
        Malformed::FrameCount(_) => "frame-count",
        Malformed::BodyTooLong { .. } => "body-too-long",
        Malformed::Name { .. } => "name",
        Malformed::Services(_) => "services",
        Malformed::Address(_) => "address",
        Malformed::Ez(_) => "ez",
    }
}

#[test]
fn native_messages_decode_and_encode_to_the_same_bytes() {
    let files = ["calls", "work", "life", "brokers", "ez"];
    let mut kinds = std::collections::BTreeSet::new();
    for (name, frames, packet) in
        files.iter().flat_map(|family| decode_all(&format!("native-{family}.json")))
    {
        let (first, rest) = packet.encode();
        let encoded: Vec<_> = [first.into()].into_iter().chain(rest).collect();
        let (got, expected): (Vec<_>, Vec<_>) =
            (encoded.iter().map(|f| hex(f)).collect(), frames.iter().map(|f| hex(f)).collect());
        assert_eq!(got, expected, "{name}");
        kinds.insert(packet.message.kind());
    }
    // Every kind has its vector: whatever decodes an empty header or complains about it exists.
    let exists = |kind: &u8| {
        let prefix = Prefix {
            kind: *kind,
            flags: Flags(0),
            header_len: 0,
            steer: Steer::All,
            pipe: Incarnation::NONE,
            peer: PeerId::default(),
        };
        let mut frame = Vec::new();
        prefix.encode(&mut frame);
        Packet::decode(vec![frame.into()]) != Err(Malformed::Kind(*kind))
    };
    assert_eq!(kinds, (0..=255).filter(exists).collect());
}

#[test]
fn what_nobody_sends_is_taken_all_the_same() {
    assert!(!decode_all("native-accepted.json").is_empty());
}

#[test]
fn malformed_native_messages_are_refused() {
    for vector in list(&load("native-malformed.json"), "vectors") {
        let name = text(vector, "name");
        let error = Packet::decode(all_bytes(list(vector, "frames")))
            .expect_err(&format!("{name}: was taken"));
        assert_eq!(class(&error), text(vector, "error"), "{name}: {error}");
    }
}

#[test]
fn ez_messages_decode_and_encode_to_the_same_bytes() {
    for vector in list(&load("ez.json"), "vectors") {
        let name = text(vector, "name");
        let frames = all_bytes(list(vector, "frames"));
        let field = |field: &str| bytes(text(vector, field));
        let body = || all_bytes(vector["body"].as_array().expect("a body is a list"));
        match text(vector, "says") {
            "request" => {
                let request =
                    ez::Request { id: field("id"), service: field("service"), body: body() };
                assert_eq!(ez::encode_request(&request), frames, "{name}");
                assert_eq!(ez::decode_request(&frames), Ok(request), "{name}");
            }
            "answer" => {
                assert_eq!(ez::encode_answer(field("id"), body()), frames, "{name}");
                assert_eq!(ez::decode_answer(&frames), Ok((field("id"), body())), "{name}");
            }
            "work" => {
                let work = ez::encode_work(field("address"), field("id"), body());
                assert_eq!(work, frames, "{name}");
            }
            "beat" => {
                let beat = ez::FromWorker::Beat(field("service"));
                assert_eq!(ez::decode_from_worker(&frames), Ok(beat), "{name}");
            }
            "reply" => {
                let reply = ez::FromWorker::Reply {
                    address: field("address"),
                    id: field("id"),
                    body: body(),
                };
                assert_eq!(ez::decode_from_worker(&frames), Ok(reply), "{name}");
            }
            says => panic!("{name}: nobody says {says}"),
        }
    }
}

#[test]
fn malformed_ez_messages_are_refused() {
    for vector in list(&load("ez-malformed.json"), "vectors") {
        let frames = all_bytes(list(vector, "frames"));
        let refused = match text(vector, "to") {
            "in pipe" => ez::decode_request(&frames).err(),
            "worker pipe" => ez::decode_from_worker(&frames).err(),
            "client" => ez::decode_answer(&frames).err(),
            // This crate plays no EZ worker.
            "worker" => continue,
            to => panic!("no receiver {to}"),
        };
        let name = text(vector, "name");
        let error = refused.unwrap_or_else(|| panic!("{name}: was taken"));
        assert_eq!(class(&error), text(vector, "error"), "{name}: {error}");
    }
}

#[test]
fn names_are_computed_as_written() {
    let names = load("names.json");
    for vector in list(&names, "service_hashes") {
        let hash = ServiceHash::of(&bytes(text(vector, "service")));
        assert_eq!(hash.0, word(vector, "hash"), "{vector}");
    }
    for vector in list(&names, "ez_service_hashes") {
        let hash = ServiceHash::of_ez(text(vector, "service").as_bytes());
        assert_eq!(hash.0, word(vector, "hash"), "{vector}");
        assert_eq!(hash, ServiceHash::of(text(vector, "as_if").as_bytes()), "{vector}");
    }
    for vector in list(&names, "incarnations") {
        let epoch = vector["epoch"].as_u64().and_then(|epoch| u32::try_from(epoch).ok());
        let got = Incarnation::new(text(vector, "name"), epoch.expect("32 bits"));
        assert_eq!(got.0, word(vector, "incarnation"), "{vector}");
    }
    for vector in list(&names, "succeeds") {
        let (later, earlier) = (word(vector, "later"), word(vector, "earlier"));
        let got = Incarnation(later).succeeds(Incarnation(earlier));
        assert_eq!(json!(got), vector["succeeds"], "{vector}");
    }
    for vector in list(&names, "homes") {
        let parse = |id: &Value| u64::from_str_radix(id.as_str().unwrap_or_default(), 16).ok();
        let brokers = list(vector, "brokers").iter().filter_map(parse).map(Incarnation);
        let got = home(ServiceHash::of(text(vector, "service").as_bytes()), brokers);
        assert_eq!(got.map(|broker| broker.0), parse(&vector["home"]), "{vector}");
    }
}

#[test]
fn metadata_is_laid_out_as_written() {
    let names = load("names.json");
    for vector in list(&names, "metadata") {
        let entries: Vec<(&str, Bytes)> = list(vector, "entries")
            .iter()
            .map(|entry| {
                let part = |at: usize| entry[at].as_str().expect("text");
                (part(0), bytes(part(1)))
            })
            .collect();
        let encoded = bytes(text(vector, "bytes"));
        let metadata = Metadata::new(entries.clone()).expect("it is well-formed");
        assert_eq!(metadata.as_bytes(), encoded, "{vector}");
        assert_eq!(Metadata::decode(&encoded), Ok(metadata.clone()), "{vector}");
        let read: Vec<_> = metadata.iter().map(|(n, v)| (n, Bytes::copy_from_slice(v))).collect();
        assert_eq!(read, entries, "{vector}");
    }
    for vector in list(&names, "malformed_metadata") {
        assert!(Metadata::decode(&bytes(text(vector, "bytes"))).is_err(), "{vector}");
    }
}

#[test]
fn addresses_are_laid_out_as_written() {
    let names = load("names.json");
    for vector in list(&names, "addresses") {
        let path = ReturnPath {
            pipe: Incarnation(word(vector, "pipe")),
            dialect: if text(vector, "dialect") == "ez" { Dialect::Ez } else { Dialect::Native },
            peer: bytes(text(vector, "peer")),
        };
        let number = vector["number"].as_u64().expect("a number");
        let address = Address { owner: Incarnation(word(vector, "owner")), number, path };
        let encoded = bytes(text(vector, "bytes"));
        assert_eq!(address.encode(), encoded, "{vector}");
        assert_eq!(Address::owner_of(&encoded), Some(address.owner), "{vector}");
        assert_eq!(Address::decode(&encoded), Ok(address), "{vector}");
    }
    for vector in list(&names, "malformed_addresses") {
        let error = Address::decode(&bytes(text(vector, "bytes"))).expect_err(text(vector, "name"));
        assert_eq!(class(&error), "address", "{vector}");
    }
}
