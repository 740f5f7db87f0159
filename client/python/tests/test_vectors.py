"""The vectors of `spec/vectors` against the Python codec: valid frames decode to the fields beside
them and encode to the same bytes; malformed ones are refused as what they are."""

import json
import re
from pathlib import Path

import pytest

from zex import ez, ids, wire
from zex.errors import Malformed

VECTORS = Path(__file__).resolve().parents[3] / "spec" / "vectors"


def load(file):
    return json.loads((VECTORS / file).read_text(encoding="utf-8"))


def vectors(*files):
    found = [
        pytest.param(vector, id=f"{file}: {vector['name']}")
        for file in files
        for vector in load(file)["vectors"]
    ]
    assert found
    return found


def raw(notation):
    """Bytes in the notation of the vectors."""
    notation = re.sub(r"[ |]", "", notation)
    pieces = re.findall(r"\(([0-9a-f]{2})\*(\d+)\)|([0-9a-f]+)", notation)
    return b"".join(
        bytes.fromhex(plain) if plain else bytes.fromhex(byte) * int(times)
        for byte, times, plain in pieces
    )


def frames_of(vector):
    return [raw(frame) for frame in vector["frames"]]


def word(value):
    return f"{value:016x}"


# The fields that are incarnations, which the vectors write as 16 digits.
INCARNATIONS = {wire.Held: {"owner"}, wire.WantSnapshot: {"of"}, wire.PipeBeat: {"pipe"}}


# The fields that the vectors leave out where there is nothing in them, as the wire does.
METADATA = {"metadata", "headers", "trailers"}


def written(value):
    """A header as the vectors write it."""
    if isinstance(value, tuple):
        words = INCARNATIONS.get(type(value), ())
        return {
            name: word(field) if name in words else written(field)
            for name, field in value._asdict().items()
            if field or name not in METADATA
        }
    if isinstance(value, list):
        return [written(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def plain(value):
    """A vector without the notation for repeated bytes."""
    if isinstance(value, dict):
        return {name: plain(field) for name, field in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return raw(value).hex() if isinstance(value, str) and "(" in value else value


def described(packet):
    to, target = packet.steer
    return {
        "message": type(packet.message).__name__,
        "steer": "all" if to == "all" else {to: word(target)},
        "pipe": word(packet.pipe),
        "peer": packet.peer.hex(),
        "bounced": "full" if packet.full else packet.bounced,
        "header": written(packet.message),
        "body": written(packet.body),
    }


NATIVE = [f"native-{family}.json" for family in ("calls", "work", "life", "brokers", "ez")]


@pytest.mark.parametrize("vector", vectors(*NATIVE, "native-accepted.json"))
def test_a_native_message_decodes_to_its_fields(vector):
    expected = plain({k: v for k, v in vector.items() if k not in ("name", "frames")})
    assert described(wire.decode(frames_of(vector))) == expected


@pytest.mark.parametrize("vector", vectors(*NATIVE))
def test_a_native_message_encodes_to_the_same_bytes(vector):
    frames = frames_of(vector)
    assert wire.encode(wire.decode(frames)) == frames


@pytest.mark.parametrize("vector", vectors("native-malformed.json"))
def test_a_malformed_native_message_is_refused(vector):
    with pytest.raises(Malformed) as caught:
        wire.decode(frames_of(vector))
    assert caught.value.reason == vector["error"], caught.value


@pytest.mark.parametrize("vector", vectors("ez.json"))
def test_ez_frames(vector):
    frames = frames_of(vector)
    body = [raw(frame) for frame in vector.get("body", [])]
    field = {name: raw(vector[name]) for name in ("id", "service", "address") if name in vector}
    says = vector["says"]
    if says == "request":
        assert ez.encode_request(field["id"], field["service"], body) == frames
    elif says == "answer":
        assert ez.decode_answer(frames) == ez.Answer(field["id"], body)
    elif says == "beat":
        assert ez.encode_beat(field["service"]) == frames
    elif says == "work":
        assert ez.decode_work(frames) == ez.Work(field["address"], field["id"], body)
    else:
        assert says == "reply"
        assert ez.encode_reply(ez.Work(field["address"], field["id"], []), body) == frames


# What pipes have to refuse is for pipes; this package has the other ends.
@pytest.mark.parametrize(
    "vector", [p for p in vectors("ez-malformed.json") if p.values[0]["to"] in ("client", "worker")]
)
def test_malformed_ez_frames_are_refused(vector):
    decode = {"client": ez.decode_answer, "worker": ez.decode_work}[vector["to"]]
    with pytest.raises(Malformed) as caught:
        decode(frames_of(vector))
    assert caught.value.reason == vector["error"]


NAMES = load("names.json")


def test_hashes():
    for vector in NAMES["service_hashes"]:
        assert word(ids.service_hash(raw(vector["service"]))) == vector["hash"], vector
    for vector in NAMES["ez_service_hashes"]:
        assert word(ids.ez_service_hash(vector["service"].encode())) == vector["hash"], vector
        assert word(ids.service_hash(vector["as_if"].encode())) == vector["hash"], vector


def test_incarnations():
    for vector in NAMES["incarnations"]:
        got = ids.incarnation(vector["name"], vector["epoch"])
        assert word(got) == vector["incarnation"], vector
    for vector in NAMES["succeeds"]:
        later, earlier = (int(vector[name], 16) for name in ("later", "earlier"))
        assert ids.succeeds(later, earlier) == vector["succeeds"], vector


def test_homes():
    for vector in NAMES["homes"]:
        brokers = [int(broker, 16) for broker in vector["brokers"]]
        got = ids.home(ids.service_hash(vector["service"].encode()), brokers)
        assert (got if got is None else word(got)) == vector["home"], vector


def test_metadata():
    for vector in NAMES["metadata"]:
        entries = [
            (name, raw(value) if name.endswith("-bin") else raw(value).decode())
            for name, value in vector["entries"]
        ]
        assert wire.pack_metadata(entries) == raw(vector["bytes"]), vector
        assert wire.unpack_metadata(raw(vector["bytes"])) == entries, vector
    for vector in NAMES["malformed_metadata"]:
        with pytest.raises(ValueError):
            wire.unpack_metadata(raw(vector["bytes"]))


def test_addresses():
    for vector in NAMES["addresses"]:
        owner, pipe = int(vector["owner"], 16), int(vector["pipe"], 16)
        peer, encoded = raw(vector["peer"]), raw(vector["bytes"])
        address = ids.Address(owner, vector["number"], pipe, vector["dialect"], peer)
        assert address.encode() == encoded, vector
        assert ids.Address.decode(encoded) == address, vector
    for vector in NAMES["malformed_addresses"]:
        with pytest.raises(Malformed) as caught:
            ids.Address.decode(raw(vector["bytes"]))
        assert caught.value.reason == "address", vector
