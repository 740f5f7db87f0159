"""The two ends of a stream: messages to chunks within the credit, chunks to messages.

    source ─▶ Sender: [ ≤ 256 KiB ] ─▶ chunks ≤ 64 KiB ─▶ … ─▶ Receiver: order, gaps ─▶ Reader

The bytes of a stream are `(length u32 big-endian, message)*`, cut anywhere (protocol.md §6a).
`Sender` is filled by the thread of a handler (answers) or of a caller (requests), `Reader` is emptied
by that of a caller or a handler; their other ends are the loop's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Deque, List, Optional, Tuple

from .errors import Code, Error
from .wire import (
    INITIAL_CREDIT_BYTES,
    MAX_BODY_BYTES,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_COST_BYTES,
    Entry,
)  # fmt: skip

_LENGTH_BYTES = 4
#: A stream that has had nothing to send says so this long after its beginning.
_FIRST_BEAT_S = 0.2
#: What a handler may be ahead of the credit: four chunks, so that the next is there when credit is.
_BUFFER_BYTES = 4 * MAX_CHUNK_BYTES
#: Credit that a receiver can pile up.
_MAX_CREDIT_BYTES = 64 * INITIAL_CREDIT_BYTES
#: Credit is given back in quarters of the window.
_GRANT_BYTES = INITIAL_CREDIT_BYTES // 4
#: How often each end of a stream says again what it said last.
BEAT_S = 1.0
#: Nothing was heard for so long: the stream is dead.
SILENCE_S = 2.0


def chunk_cost(size: int) -> int:
    """What a chunk with a body of so many bytes uses up of the credit; a beat costs nothing."""
    return max(size, MIN_CHUNK_COST_BYTES) if size else 0


class Sender:
    """The sending end. `push` blocks its thread while the receiver has no room."""

    def __init__(self, allowed: int = INITIAL_CREDIT_BYTES) -> None:
        self._changed = threading.Condition()
        self._buffer = bytearray()
        #: What may be spent before the receiver has said anything: of answers a window, of requests
        #: nothing.
        self._allowed = allowed
        #: Nothing comes any more; and the other end was told so. The second is of the loop alone.
        self.finished = self.end_sent = False
        self._spent = 0
        self._broken: Optional[Error] = None
        #: The number of the last chunk that left. Of the loop alone.
        self.number = 0
        #: When something was sent last, and when something was heard. Of the loop alone.
        self.sent_at = time.monotonic() - BEAT_S + _FIRST_BEAT_S
        self.heard_at = time.monotonic()

    def push(self, message: bytes, deadline: float) -> bool:
        """Queues a message; waits for room until the deadline. True if the loop has to be told:
        as long as something is queued it comes by anyway."""
        if len(message) > MAX_BODY_BYTES:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"a message of {len(message)} bytes is over the limit of {MAX_BODY_BYTES}",
            )
        with self._changed:
            while len(self._buffer) >= _BUFFER_BYTES and self._broken is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise Error(Code.DEADLINE_EXCEEDED, "the deadline passed within the stream")
            if self._broken is not None:
                raise self._broken
            idle = not self._buffer
            self._buffer += len(message).to_bytes(_LENGTH_BYTES, "big") + message
            return idle

    def finish(self) -> None:
        """Everything has been pushed."""
        with self._changed:
            self.finished = True

    def break_(self, error: Error) -> None:
        """Nobody reads on: whatever is queued is dropped, and `push` raises this from now on."""
        with self._changed:
            self._broken = self._broken or error
            self._buffer.clear()
            self._changed.notify_all()

    def credit(self, upto: int) -> None:
        """The receiver lets so much be spent in all."""
        with self._changed:
            self._allowed = max(self._allowed, min(upto, self._spent + _MAX_CREDIT_BYTES))

    def take(self) -> bytes:
        """The body of the next chunk; empty if there is nothing to send or no credit."""
        with self._changed:
            left = self._allowed - self._spent
            if left < MIN_CHUNK_COST_BYTES:
                return b""
            size = min(len(self._buffer), left, MAX_CHUNK_BYTES)
            part = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._spent += chunk_cost(size)
            self._changed.notify_all()
            return part

    def give_back(self, part: bytes) -> None:
        """This chunk could not be sent; it is the next again."""
        with self._changed:
            self._buffer[:0] = part
            self._spent -= chunk_cost(len(part))

    @property
    def empty(self) -> bool:
        """Whether everything has left."""
        with self._changed:
            return not self._buffer


class Receiver:
    """The receiving end: the order of chunks, and the credit to give back. Of the loop alone."""

    def __init__(self, owner: int, now: float) -> None:
        #: The broker that the stream comes by.
        self.owner = owner
        #: When a chunk or a beat came last.
        self.heard_at = now
        #: The number of the last chunk.
        self.last = 0
        #: When the credit is to be said again.
        self.beat_due = now + BEAT_S
        #: Costs, each from the beginning: what came, what was read, what the sender was told.
        self._came = 0
        self._consumed = 0
        self.granted = INITIAL_CREDIT_BYTES

    def chunk(self, now: float, owner: int, number: int, size: int) -> bool:
        """Whether this chunk is the next part. Raises the stream's end if it cannot go on."""
        if owner != self.owner:
            raise Error(Code.UNAVAILABLE, "the stream changed its broker")
        self.heard_at = now
        # Serial numbers (RFC 1982): a stream may have more chunks than a number counts.
        ahead = (number - self.last + (1 << 31)) % (1 << 32) - (1 << 31)
        if ahead <= 0:
            return False  # A beat, or a part that was here before.
        if not size or ahead != 1:
            raise Error(Code.UNAVAILABLE, "a part of the stream was lost")
        self.last = number
        self._came += chunk_cost(size)
        if self._came > self.granted:
            raise Error(Code.RESOURCE_EXHAUSTED, "more of the stream was sent than was allowed")
        return True

    def consumed(self, cost: int) -> None:
        """The reader has taken chunks of this cost."""
        self._consumed = min(self._came, self._consumed + cost)

    def grant(self) -> int:
        """The credit to tell now; 0 if it is no news worth a message."""
        upto = self._consumed + INITIAL_CREDIT_BYTES
        if upto - self.granted < _GRANT_BYTES:
            return 0
        self.granted = upto
        return upto


class Reader:
    """Chunks in, messages out, across two threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks: Deque[bytes] = deque()
        self._end: Optional[Tuple[Optional[Error], bytes]] = None
        self._partial = bytearray()
        self._began = False
        self._headers: Optional[List[Entry]] = None
        #: What the stream ended with.
        self.trailers: List[Entry] = []

    def headers(self, headers: List[Entry]) -> None:
        """What the stream begins with; the first to say so is right."""
        with self._changed:
            if self._headers is None and headers:
                self._headers = headers
                self._changed.notify_all()

    def wait_for_headers(self, deadline: float) -> List[Entry]:
        """What the stream begins with: empty if its first part or its end comes before."""
        with self._changed:
            while (
                self._headers is None and not self._chunks and self._end is None and not self._began
            ):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise Error(Code.DEADLINE_EXCEEDED, "no answer by the deadline")
            return list(self._headers or [])

    def put(self, chunk: bytes) -> None:
        """The next part. Credit bounds how much of it can gather here."""
        with self._changed:
            self._chunks.append(chunk)
            self._began = True
            self._changed.notify_all()

    def end(self, error: Optional[Error], last: bytes = b"") -> None:
        """The stream has ended, badly with an error; well with, perhaps, one last message."""
        with self._changed:
            self._end = self._end or (error, last)
            self._changed.notify_all()

    def get(self, deadline: float) -> Tuple[List[bytes], int, bool]:
        """Waits for what comes next: whole messages, what their chunks cost, and
        whether that is all. Raises how the stream ended, if it ended badly."""
        with self._changed:
            while not self._chunks and self._end is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise Error(Code.DEADLINE_EXCEEDED, "no answer by the deadline")
            chunks, self._chunks = list(self._chunks), deque()
            end = self._end
        messages = self._cut(chunks)
        size = sum(chunk_cost(len(chunk)) for chunk in chunks)
        if end is None or (chunks and messages):
            # The end is told after everything in front of it is read.
            return messages, size, False
        error, last = end
        if error is not None:
            raise error
        if self._partial:
            raise Error(Code.DATA_LOSS, "the stream ended inside a message")
        return ([last] if last else []), size, True

    def _cut(self, chunks: List[bytes]) -> List[bytes]:
        messages = []
        for chunk in chunks:
            self._partial += chunk
        at = 0
        while len(self._partial) - at >= _LENGTH_BYTES:
            size = int.from_bytes(self._partial[at : at + _LENGTH_BYTES], "big")
            if size > MAX_BODY_BYTES:
                raise Error(Code.DATA_LOSS, f"a message of {size} bytes in a stream is too long")
            if len(self._partial) - at < _LENGTH_BYTES + size:
                break
            messages.append(bytes(self._partial[at + _LENGTH_BYTES : at + _LENGTH_BYTES + size]))
            at += _LENGTH_BYTES + size
        del self._partial[:at]
        return messages
