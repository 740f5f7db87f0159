"""Pieces of work at a worker: what runs, for whom, and how it ended.

`Context` is what a handler sees of its call; the rest is the worker's book-keeping, of its loop's
thread alone. Used by `worker.py`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from . import wire
from .errors import Code, Error
from .ids import Address
from .keys import Answered
from .streams import Reader, Receiver, Sender

#: Longest status message: it is one line for a person.
_MAX_STATUS_BYTES = 8 << 10


class Context:
    """What a handler may know of its call."""

    def __init__(self, work: wire.Work, deadline: float) -> None:
        #: What the caller named.
        self.service = work.service
        self.method = work.method
        #: The same for every try of this call.
        self.key = work.key
        #: 0 at first; above it, the call was sent again.
        self.attempt = work.attempt
        #: Whether the caller reads a stream.
        self.streams = bool(work.options & wire.STREAM)
        #: What the caller says beside the request: names with texts, or bytes if they end in `-bin`.
        self.metadata: List[wire.Entry] = wire.unpack_metadata(work.metadata)
        #: What the answer begins and ends with, likewise; for the handler to fill.
        self.headers: List[wire.Entry] = []
        self.trailers: List[wire.Entry] = []
        self.deadline = deadline
        self._stopped = threading.Event()
        self._ahead: Callable[[], None] = lambda: None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. Long handlers look here now and then."""
        return self._stopped.is_set()

    def remaining_s(self) -> float:
        """Seconds until the caller stops waiting."""
        return max(0.0, self.deadline - time.monotonic())

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not beyond the end of the call. Whether the call is still wanted."""
        return not self._stopped.wait(min(seconds, self.remaining_s())) and self.remaining_s() > 0

    def send_headers(self) -> None:
        """Sends `headers` now, ahead of the first message of a stream; else they go with that, or
        with the reply."""
        self._ahead()

    def abort(self, code: int, message: str, details: bytes = b"") -> None:
        """Ends the call with this status."""
        raise Error(code, message, details)


class To(NamedTuple):
    """Where an answer goes."""

    owner: int
    number: int
    address: bytes


class Run:
    """One run of one piece of work."""

    def __init__(self, work: wire.Work, body: bytes, to: To, path: int) -> None:
        self.key = work.key
        self.body = body
        self.path = path
        self.context = Context(work, time.monotonic() + work.deadline_ms / 1_000)
        #: The newest last, one for each owner.
        self.to = [to]
        self.sender = Sender() if self.context.streams else None
        #: Where the requests come in, if they are a stream.
        self.reader: Optional[Reader] = None
        self.receiver: Optional[Receiver] = None
        if self.sender is not None and work.options & wire.REQUESTS:
            self.reader, self.receiver = Reader(), Receiver(to.owner, time.monotonic())
        #: What a stream begins with, packed, to be sent; and whether the handler has handed it over.
        self.headers, self.headers_sent = b"", False
        #: Set when the handler is done.
        self.outcome: Optional[Answered] = None
        #: Answered already (taken back, or too late): its handler's outcome is not wanted.
        self.over = False

    def requests(self, consumed: Callable[[int], None]) -> Iterator[bytes]:
        """The requests for the handler, as they come; `consumed` hears what of the credit is free again."""
        if self.reader is None:
            yield self.body
            return
        ended = False
        while not ended:
            messages, size, ended = self.reader.get(self.context.deadline)
            yield from messages
            if size:
                consumed(size)


class Owner:
    """What an owner's work here looks like: the rows of a heartbeat."""

    def __init__(self) -> None:
        self.seen = 0
        self.held: Dict[int, None] = {}
        self.heard_at = 0.0


def reply_bytes(message: Any, where: str) -> bytes:
    """What a handler gave, as the body of a reply or a message of a stream."""
    if hasattr(message, "SerializeToString"):
        message = message.SerializeToString()
    if not isinstance(message, (bytes, bytearray, memoryview)):
        if hasattr(message, "__next__"):
            raise Error(Code.INVALID_ARGUMENT, f"{where} answers with a stream; call it as one")
        kind = type(message).__name__
        raise Error(Code.INTERNAL, f"{where}: a reply is bytes or a protobuf message, not {kind}")
    if len(message) > wire.MAX_BODY_BYTES:
        text = f"the reply has {len(message)} bytes, at most {wire.MAX_BODY_BYTES} travel"
        raise Error(Code.RESOURCE_EXHAUSTED, text)
    return bytes(message)


def bad(error: Error) -> Answered:
    """An error as it travels, within what travels."""
    code = Code.INTERNAL if error.code == Code.OK else error.code
    message = error.message.encode("utf-8", "replace")[:_MAX_STATUS_BYTES].decode("utf-8", "ignore")
    details = error.details if len(error.details) <= wire.MAX_BODY_BYTES else b""
    return Answered(code, message, 0, details)


def to_of(packet: wire.Packet) -> To:
    """Where a reply goes."""
    assert isinstance(packet.message, wire.Reply)  # Nothing else is kept.
    address = Address.decode(packet.message.address)
    return To(address.owner, address.number, packet.message.address)
