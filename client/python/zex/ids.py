"""The names on the wire: service hashes, incarnations, homes, work addresses.

Pure functions over integers and bytes, as `spec/protocol.md` §3 lays them out. An incarnation (one
life of a broker or a pipe) and a service hash are plain 64-bit integers here.
"""

from __future__ import annotations

from typing import Iterable, NamedTuple, Optional

from .errors import Malformed

_WORD = 0xFFFF_FFFF_FFFF_FFFF

#: ZeroMQ allows routing ids of 1 to 255 bytes.
MAX_ROUTING_ID_BYTES = 255
#: Bytes of an address before its peer.
_ADDRESS_FIXED_BYTES = 25

NATIVE = "native"
EZ = "ez"


def service_hash(service: bytes) -> int:
    """FNV-1a, 64 bits: what an in pipe steers a request by."""
    value = 0xCBF2_9CE4_8422_2325
    for byte in service:
        value = ((value ^ byte) * 0x0100_0000_01B3) & _WORD
    return value


def ez_service_hash(service: bytes) -> int:
    """The hash that an EZ request is steered by: that of the name in front of its last `/`."""
    head, slash, _ = service.rpartition(b"/")
    return service_hash(head if slash else service)


def incarnation(name: str, epoch: int) -> int:
    """One life of a broker or a pipe: a stable half from its name, and its epoch."""
    value = service_hash(name.encode())
    return (((value >> 32) ^ (value & 0xFFFF_FFFF)) << 32) | epoch


def succeeds(later: int, earlier: int) -> bool:
    """Whether `later` is a later life of the same broker or pipe (epochs wrap, RFC 1982)."""
    if later >> 32 != earlier >> 32:
        return False
    return 0 < ((later - earlier) & 0xFFFF_FFFF) < 0x8000_0000


def home(service: int, brokers: Iterable[int]) -> Optional[int]:
    """The broker that the requests of a service (its hash) go to; None without brokers."""
    return max(
        brokers, key=lambda broker: (_mix(service ^ _mix(broker >> 32)), broker), default=None
    )


def _mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x + 0x9E37_79B9_7F4A_7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & _WORD
    return x ^ (x >> 31)


class Address(NamedTuple):
    """What a piece of work carries and its answer brings back untouched.

    A worker reads no more of it than the owner and the number, which its heartbeats repeat.
    """

    owner: int
    number: int
    pipe: int
    dialect: str
    peer: bytes

    def encode(self) -> bytes:
        """The bytes that travel."""
        fixed = b"".join(word.to_bytes(8, "big") for word in (self.owner, self.number, self.pipe))
        return fixed + (b"\0" if self.dialect == NATIVE else b"\1") + self.peer

    @classmethod
    def decode(cls, data: bytes) -> "Address":
        """Reads an address; `Malformed` if these bytes are none."""
        if len(data) < _ADDRESS_FIXED_BYTES:
            raise Malformed("address", "no work address: too short")
        owner, number, pipe = (int.from_bytes(data[at : at + 8], "big") for at in (0, 8, 16))
        peer = data[_ADDRESS_FIXED_BYTES:]
        if data[24] > 1:
            raise Malformed("address", "no work address: unknown dialect")
        dialect = EZ if data[24] else NATIVE
        fits = 1 <= len(peer) <= MAX_ROUTING_ID_BYTES if dialect == EZ else len(peer) == 16
        if not fits:
            raise Malformed("address", "no work address: its peer is no routing id")
        return cls(owner, number, pipe, dialect, peer)
