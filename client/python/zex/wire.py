"""The native dialect: messages to frames and back, as `spec/protocol.md` §3 and §5 lay them out.

    frame 1   prefix (48 bytes, pipes steer by it) | header (MessagePack array) | body up to 8 KiB
    frame 2   a larger body

Every message is a NamedTuple whose fields are its header's, in order; `encode` and `decode` are
for whole messages with all that surrounds them (`Packet`). Pure: no sockets, no clock. Used by the
client and the worker; the test vectors of the project run against it.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Sequence, Tuple, Type, Union

import msgpack

from .errors import Malformed
from .ids import service_hash

MAGIC = b"ZX"
VERSION = 1
PREFIX_BYTES = 48
#: A header larger than this is garbage.
MAX_HEADER_BYTES = 1 << 20
#: Larger bodies travel in a frame of their own.
INLINE_BODY_BYTES = 8 << 10
#: Largest message body.
MAX_BODY_BYTES = 16 << 20
#: Largest body of one chunk of a stream.
MAX_CHUNK_BYTES = 64 << 10
#: The window of a stream: what its worker may send before the first `Credit`.
INITIAL_CREDIT_BYTES = 1 << 20
#: What a chunk takes of the credit at least.
MIN_CHUNK_COST_BYTES = 512
#: Longest service, method or worker name.
MAX_NAME_BYTES = 255
#: Most services of one `Register`.
MAX_SERVICES = 1_024
#: Most bytes of one message's metadata.
MAX_METADATA_BYTES = 16 << 10
#: Most frames of one message.
MAX_FRAMES = 64
#: How often workers beat.
BEAT_INTERVAL_S = 0.5
#: The method, reserved on every service, that answers with its FileDescriptorSet.
DESCRIPTORS_METHOD = "zex.Descriptors"
#: Served by the brokers themselves.
MESH_SERVICE = "zex.Mesh"

# Flags of the prefix.
MORE = 1
BOUNCED = 2
TO_OWNER = 4
TO_ALL = 8
FULL = 16

# Options of a call.
IDEMPOTENT = 1
WAIT = 2
STREAM = 4
ACKNOWLEDGE = 8
#: The request is a stream, too; only together with STREAM.
REQUESTS = 32

#: Priorities of a call: 0 to this one, the higher goes first; and the one of who asks for none.
MAX_PRIORITY = 9
DEFAULT_PRIORITY = 4

# Knowledge of a key.
DENIED = 0
HELD = 1

_PREFIX = struct.Struct(">2sBBHHIIQQ16s")
assert _PREFIX.size == PREFIX_BYTES


class Steer(NamedTuple):
    """Where a message wants to go: `to` is "home", "owner" or "all"."""

    to: str
    #: The service's hash, the broker's incarnation, or 0.
    target: int

    @classmethod
    def home(cls, service: str) -> "Steer":
        """To the home of a service."""
        return cls("home", service_hash(service.encode()))

    @classmethod
    def owner(cls, broker: int) -> "Steer":
        """To one broker; if it is dead, to another that can help."""
        return cls("owner", broker)


#: To every broker.
ALL = Steer("all", 0)


class Call(NamedTuple):
    """A request."""

    key: bytes
    service: str
    method: str
    deadline_ms: int
    attempt: int
    age_ms: int
    options: int
    priority: int = DEFAULT_PRIORITY
    #: As `pack_metadata` makes it; so everywhere.
    metadata: bytes = b""


class Cancel(NamedTuple):
    """The caller takes the call back."""

    key: bytes


class Credit(NamedTuple):
    """How much the sender of a stream may send, in `chunk_cost`s from its beginning."""

    key: bytes
    upto: int


class Accepted(NamedTuple):
    """The owner has the call."""

    key: bytes


class Reply(NamedTuple):
    """The end of a call."""

    address: bytes
    key: bytes
    code: int
    message: str
    chunks: int
    headers: bytes = b""
    trailers: bytes = b""


class Chunk(NamedTuple):
    """Part of a stream; without a body it is a beat."""

    address: bytes
    key: bytes
    number: int
    #: From a client: no request comes after it.
    end: bool = False
    headers: bytes = b""


class BrokerDown(NamedTuple):
    """The broker in the steer is gone."""


class Work(NamedTuple):
    """A call on its way to the worker that was picked."""

    address: bytes
    key: bytes
    service: str
    method: str
    deadline_ms: int
    attempt: int
    options: int
    metadata: bytes = b""


class Busy(NamedTuple):
    """Not begun: safe to send elsewhere."""

    address: bytes
    key: bytes


class Ask(NamedTuple):
    """Do you know this key? What the asker sent with it up to this number is given up."""

    key: bytes
    attempt: int
    number: int


class Answer(NamedTuple):
    """What a worker knows of a key: DENIED or HELD."""

    key: bytes
    knowledge: int


class Register(NamedTuple):
    """What a worker serves."""

    name: str
    version: int
    capacity: int
    services: Sequence[str]


class Held(NamedTuple):
    """One owner's work, from the worker's end."""

    owner: int
    seen: int
    numbers: Sequence[int]


class Heartbeat(NamedTuple):
    """A worker lives."""

    version: int
    held: Sequence[Held]


class Goodbye(NamedTuple):
    """A worker leaves."""


class Enquire(NamedTuple):
    """A broker does not know this worker: please register."""


class BrokerBeat(NamedTuple):
    """A broker to a pipe: it lives."""

    ready: bool
    goodbye: bool


class PipeBeat(NamedTuple):
    """A pipe to a broker: it lives."""

    pipe: int


class PeerGone(NamedTuple):
    """The connection of this peer has ended."""

    peer: bytes


class Hello(NamedTuple):
    """A broker to all brokers: it lives."""

    name: str
    ready: bool
    sequence: int
    goodbye: bool


class Count(NamedTuple):
    """How many assignments a broker has at one worker."""

    worker: bytes
    assigned: int


class Share(NamedTuple):
    """A broker's assignments, for the other brokers."""

    sequence: int
    snapshot: bool
    counts: Sequence[Count]
    age_us: int


class WantSnapshot(NamedTuple):
    """A broker asks another (0: all) for a snapshot."""

    of: int


class EzCall(NamedTuple):
    """An EZ request, from the in pipe to a broker."""

    peer: bytes
    id: bytes
    service: bytes


class EzAnswer(NamedTuple):
    """The answer to an EZ client."""

    peer: bytes
    id: bytes


class EzBeat(NamedTuple):
    """The beat of an EZ worker, with what its pipe knows that it holds."""

    peer: bytes
    service: bytes
    held: Sequence[Held]


class EzWork(NamedTuple):
    """Work for an EZ worker."""

    peer: bytes
    address: bytes
    id: bytes


class EzReply(NamedTuple):
    """The answer of an EZ worker."""

    peer: bytes
    address: bytes
    id: bytes


Message = Union[
    Call, Cancel, Credit, Accepted, Reply, Chunk, BrokerDown, Work, Busy, Ask, Answer, Register,
    Heartbeat, Goodbye, Enquire, BrokerBeat, PipeBeat, PeerGone, Hello, Share, WantSnapshot, EzCall,
    EzAnswer, EzBeat, EzWork, EzReply,
]  # fmt: skip

#: One entry of metadata: a name, and a text, or any bytes if the name ends in `-bin`.
Entry = Tuple[str, Union[str, bytes]]
_METADATA_NAME = re.compile(r"[0-9a-z_.-]{1,255}\Z")
_METADATA_TEXT = re.compile(r"[ -~]*\Z")


def pack_metadata(entries: Iterable[Entry]) -> bytes:
    """Metadata as it travels; `ValueError` says what of it cannot."""
    packed = b"".join(_pack_entry(name, value) for name, value in entries)
    if len(packed) > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata has {len(packed)} bytes, at most {MAX_METADATA_BYTES} travel")
    return packed


def _pack_entry(name: str, value: Union[str, bytes]) -> bytes:
    if not isinstance(name, str) or not _METADATA_NAME.match(name):
        raise ValueError(f"{name!r} is no name of metadata: 1 to 255 of 0-9 a-z _ - .")
    if isinstance(value, str) and _METADATA_TEXT.match(value):
        value = value.encode()
    elif not (isinstance(value, bytes) and name.endswith("-bin")):
        raise ValueError(f"the value of {name} is no printable ASCII; that of a -bin is bytes")
    return struct.pack(">B", len(name)) + name.encode() + struct.pack(">H", len(value)) + value


def unpack_metadata(packed: bytes) -> List[Entry]:
    """The entries, in order; `ValueError` if these bytes are no metadata."""
    if len(packed) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata of {len(packed)} bytes is over the limit")
    entries: List[Entry] = []
    at = 0
    while at < len(packed):
        start = at + 1 + packed[at]
        name = packed[at + 1 : start].decode("latin-1")
        size = int.from_bytes(packed[start : start + 2], "big")
        at = start + 2 + size
        if at > len(packed):
            raise ValueError("the metadata ends in the middle of an entry")
        raw = packed[start + 2 : at]
        value: Union[str, bytes] = raw if name.endswith("-bin") else raw.decode("latin-1")
        _pack_entry(name, value)
        entries.append((name, value))
    return entries


# A check takes what MessagePack gave and gives back the field, or raises ValueError.
_Check = Callable[[Any], Any]


def _is(type_: type, what: str, fits: Callable[[Any], bool] = lambda value: True) -> _Check:
    def check(value: Any) -> Any:
        # `type is`, since a bool is an int to Python and not to MessagePack.
        if type(value) is not type_ or not fits(value):
            raise ValueError(f"{what} was expected, not {type(value).__name__}")
        return value

    return check


_bool = _is(bool, "a bool")
_str = _is(str, "a str")
_bin = _is(bytes, "a bin")
_bin16 = _is(bytes, "a bin of 16 bytes", lambda value: len(value) == 16)
_u8 = _is(int, "an integer of 8 bits", lambda value: 0 <= value < 1 << 8)
_u32 = _is(int, "an integer of 32 bits", lambda value: 0 <= value < 1 << 32)
_u64 = _is(int, "an integer of 64 bits", lambda value: 0 <= value < 1 << 64)


def _metadata(value: Any) -> Any:
    unpack_metadata(_bin(value))
    return value


def _list(of: _Check) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError(f"an array was expected, not {type(value).__name__}")
        return [of(item) for item in value]

    return check


def _fields(make: Type[Any], *checks: _Check) -> _Check:
    # Metadata stands last, and is left out where there is none.
    least = len(checks) - checks.count(_metadata)

    def check(value: Any) -> Any:
        if type(value) is not list or not least <= len(value) <= len(checks):
            raise ValueError(f"an array of {len(checks)} was expected")
        fields = []
        for at, (one, item) in enumerate(zip(checks, value)):
            try:
                fields.append(one(item))
            except ValueError as error:
                raise ValueError(f"[{at}] {error}") from None
        return make(*fields)

    return check


_KINDS: Dict[int, Tuple[Type[Any], Tuple[_Check, ...]]] = {
    0x01: (Call, (_bin16, _str, _str, _u32, _u8, _u32, _u8, _u8, _metadata)),
    0x02: (Cancel, (_bin16,)),
    0x03: (Credit, (_bin16, _u64)),
    0x04: (Accepted, (_bin16,)),
    0x05: (Reply, (_bin, _bin16, _u8, _str, _u32, _metadata, _metadata)),
    0x06: (Chunk, (_bin, _bin16, _u32, _bool, _metadata)),
    0x07: (BrokerDown, ()),
    0x11: (Work, (_bin, _bin16, _str, _str, _u32, _u8, _u8, _metadata)),
    0x12: (Busy, (_bin, _bin16)),
    0x13: (Ask, (_bin16, _u8, _u64)),
    0x14: (Answer, (_bin16, _u8)),
    0x15: (Register, (_str, _u32, _u32, _list(_str))),
    0x16: (Heartbeat, (_u32, _list(_fields(Held, _u64, _u64, _list(_u64))))),
    0x17: (Goodbye, ()),
    0x18: (Enquire, ()),
    0x21: (BrokerBeat, (_bool, _bool)),
    0x22: (PipeBeat, (_u64,)),
    0x23: (PeerGone, (_bin,)),
    0x31: (Hello, (_str, _bool, _u64, _bool)),
    0x32: (Share, (_u64, _bool, _list(_fields(Count, _bin16, _u32)), _u32)),
    0x33: (WantSnapshot, (_u64,)),
    0x41: (EzCall, (_bin, _bin, _bin)),
    0x42: (EzAnswer, (_bin, _bin)),
    0x43: (EzBeat, (_bin, _bin, _list(_fields(Held, _u64, _u64, _list(_u64))))),
    0x44: (EzWork, (_bin, _bin, _bin)),
    0x45: (EzReply, (_bin, _bin, _bin)),
}
_KIND_OF = {make: kind for kind, (make, _) in _KINDS.items()}
_HEADERS = {kind: _fields(make, *checks) for kind, (make, checks) in _KINDS.items()}
#: Messages whose body is a list of frames.
_EZ_KINDS = (EzCall, EzAnswer, EzWork, EzReply)


class Packet(NamedTuple):
    """A whole native message."""

    message: Message
    #: Towards a broker: where it goes. Towards a peer: the broker that speaks.
    steer: Steer
    #: Bytes; of an EZ message a list of frames.
    body: Union[bytes, List[bytes]] = b""
    #: A pipe could not route it and gives it back.
    bounced: bool = False
    #: The pipe at the edge; a peer leaves it to the pipe.
    pipe: int = 0
    #: The peer at the edge; likewise.
    peer: bytes = bytes(16)
    #: With `bounced`: whom it was for is there and takes no more for the moment.
    full: bool = False


def encode(packet: Packet) -> List[bytes]:
    """The frames of a message."""
    message, body = packet.message, packet.body
    fields = list(message)
    for _ in range(_KINDS[_KIND_OF[type(message)]][1].count(_metadata)):
        if fields[-1]:
            break
        fields.pop()
    header = msgpack.packb(fields)
    if isinstance(body, list):
        inline, rest = b"", body
    elif len(body) <= INLINE_BODY_BYTES:
        inline, rest = body, []
    else:
        inline, rest = b"", [body]
    flags = (MORE if rest else 0) | (BOUNCED if packet.bounced else 0)
    flags |= FULL if packet.bounced and packet.full else 0
    flags |= {"home": 0, "owner": TO_OWNER, "all": TO_ALL}[packet.steer.to]
    prefix = _PREFIX.pack(
        MAGIC, VERSION, _KIND_OF[type(message)], flags, 0, len(header), 0,
        packet.steer.target, packet.pipe, packet.peer,
    )  # fmt: skip
    return [prefix + header + inline, *rest]


def decode(frames: Sequence[bytes]) -> Packet:
    """The message that these frames are; `Malformed` says what is wrong with them."""
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise Malformed("frame-count", f"a message does not have {len(frames)} frames")
    first = frames[0]
    kind, flags, header_len, target, pipe, peer = _decode_prefix(first)
    message = _decode_header(kind, first[PREFIX_BYTES : PREFIX_BYTES + header_len])
    _check_names(message)
    body = _body(message, flags, first[PREFIX_BYTES + header_len :], list(frames[1:]))
    if flags & TO_ALL:
        steer = ALL
    else:
        steer = Steer("owner" if flags & TO_OWNER else "home", target)
    bounced = bool(flags & BOUNCED)
    return Packet(message, steer, body, bounced, pipe, peer, bounced and bool(flags & FULL))


def _decode_prefix(frame: bytes) -> Tuple[int, int, int, int, int, bytes]:
    if len(frame) < PREFIX_BYTES:
        raise Malformed("short", f"the frame has {len(frame)} bytes, {PREFIX_BYTES} were expected")
    magic, version, kind, flags, _, header_len, _, target, pipe, peer = _PREFIX.unpack_from(frame)
    if magic != MAGIC:
        raise Malformed("magic", 'the first frame does not begin with "ZX"')
    if version != VERSION:
        raise Malformed("version", f"version {version} is not spoken here, only {VERSION}")
    if header_len > MAX_HEADER_BYTES:
        raise Malformed("header-too-long", f"a header of {header_len} bytes is over the limit")
    if len(frame) < PREFIX_BYTES + header_len:
        raise Malformed("short", f"the frame has {len(frame)} bytes, its header does not fit")
    return kind, flags, header_len, target, pipe, peer


def _decode_header(kind: int, header: bytes) -> Message:
    if kind not in _HEADERS:
        raise Malformed("kind", f"there is no message of kind {kind:#04x}")
    try:
        message: Message = _HEADERS[kind](msgpack.unpackb(header))
        return message
    except Exception as error:  # msgpack has a dozen kinds of them
        name = _KINDS[kind][0].__name__
        raise Malformed("header", f"the header of {name} does not decode: {error}") from None


def _body(
    message: Message, flags: int, inline: bytes, rest: List[bytes]
) -> Union[bytes, List[bytes]]:
    body: Union[bytes, List[bytes]]
    if isinstance(message, _EZ_KINDS):
        fits, body, size = not inline, rest, sum(map(len, rest))
    elif flags & MORE:
        fits, body = not inline and len(rest) == 1, b"".join(rest)
        size = len(body)
    else:
        fits, body, size = not rest, inline, len(inline)
    if not fits:
        raise Malformed("frame-count", f"this message does not have {1 + len(rest)} frames")
    limit = MAX_CHUNK_BYTES if isinstance(message, Chunk) else MAX_BODY_BYTES
    if size > limit:
        raise Malformed("body-too-long", f"a body of {size} bytes is over the limit of {limit}")
    return body


def check_name(what: str, name: Union[str, bytes]) -> None:
    """Names are bounded, so that whoever keeps them is."""
    size = len(name.encode() if isinstance(name, str) else name)
    if not 1 <= size <= MAX_NAME_BYTES:
        raise Malformed("name", f"a {what} name has 1 to {MAX_NAME_BYTES} bytes, not {size}")


def check_text(what: str, name: object) -> None:
    """A name that a caller gave: what is no text would fail much later, on the loop's thread."""
    if not isinstance(name, str):
        raise TypeError(f"a {what} name is text, not {type(name).__name__}")
    check_name(what, name)


def check_services(count: int) -> None:
    """What one worker may serve is bounded, since every broker keeps it."""
    if count > MAX_SERVICES:
        raise Malformed("services", f"a worker has at most {MAX_SERVICES} services, not {count}")


def _check_names(message: Message) -> None:
    if isinstance(message, (Call, Work)):
        check_name("service", message.service)
        check_name("method", message.method)
    elif isinstance(message, Register):
        check_name("worker", message.name)
        check_services(len(message.services))
        for service in message.services:
            check_name("service", service)
    elif isinstance(message, (EzCall, EzBeat)):
        check_name("service", message.service)
