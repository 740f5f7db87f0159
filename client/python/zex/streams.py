"""The two ends of a stream: messages to chunks within the credit, chunks to messages.

    handler ─▶ Sender: [ ≤ 256 KiB ] ─▶ chunks ≤ 64 KiB ─▶ … ─▶ Receiver: order, gaps ─▶ Reader

The bytes of a stream are `(length u32 big-endian, message)*`, cut anywhere (protocol.md §6).
`Sender` is filled by the handler's thread and emptied by the worker's loop; `Reader` is filled by
the client's loop and emptied by the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Deque, List, Optional, Tuple

from .errors import Code, Error
from .wire import INITIAL_CREDIT_BYTES, MAX_BODY_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_COST_BYTES

_LENGTH_BYTES = 4
#: What a handler may be ahead of the credit: four chunks, so that the next is there when credit is.
_BUFFER_BYTES = 4 * MAX_CHUNK_BYTES
#: Credit that a receiver can pile up.
_MAX_CREDIT_BYTES = 64 * INITIAL_CREDIT_BYTES
#: Credit is given back in quarters of the window.
_GRANT_BYTES = INITIAL_CREDIT_BYTES // 4
#: What may lie unread before the sender is cut off: a doubled credit is no crime, to ignore it is.
_MAX_UNREAD_BYTES = 2 * INITIAL_CREDIT_BYTES


def chunk_cost(size: int) -> int:
    """What a chunk with a body of this size takes of the credit."""
    return max(size, MIN_CHUNK_COST_BYTES)


class Sender:
    """The sending end. `push` blocks its thread while the receiver has no room."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._buffer = bytearray()
        self._credit = INITIAL_CREDIT_BYTES
        self._broken: Optional[Error] = None
        #: The number of the last chunk that left. Of the loop alone.
        self.number = 0
        #: When something was sent last. Of the loop alone.
        self.sent_at = time.monotonic()

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

    def break_(self, error: Error) -> None:
        """Nobody reads on: whatever is queued is dropped, and `push` raises this from now on."""
        with self._changed:
            self._broken = self._broken or error
            self._buffer.clear()
            self._changed.notify_all()

    def credit(self, size: int) -> None:
        """The receiver has room for so many bytes more."""
        with self._changed:
            self._credit = min(self._credit + size, _MAX_CREDIT_BYTES)

    def take(self) -> bytes:
        """The body of the next chunk; empty if there is nothing to send or no credit."""
        with self._changed:
            if not self._buffer or self._credit < MIN_CHUNK_COST_BYTES:
                return b""
            size = min(len(self._buffer), self._credit, MAX_CHUNK_BYTES)
            part = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._credit -= chunk_cost(size)
            self._changed.notify_all()
            return part

    def give_back(self, part: bytes) -> None:
        """This chunk could not be sent; it is the next again."""
        with self._changed:
            self._buffer[:0] = part
            self._credit += chunk_cost(len(part))

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
        self._unread = 0
        self._owed = 0

    def chunk(self, now: float, owner: int, number: int, size: int) -> bool:
        """Whether this chunk is the next part. Raises the stream's end if it cannot go on."""
        if owner != self.owner:
            raise Error(Code.UNAVAILABLE, "the stream changed its broker")
        self.heard_at = now
        if number <= self.last:
            return False  # A beat, or a part that was here before.
        if not size or number != self.last + 1:
            raise Error(Code.UNAVAILABLE, "a part of the stream was lost")
        self.last = number
        self._unread += chunk_cost(size)
        if self._unread > _MAX_UNREAD_BYTES:
            raise Error(Code.RESOURCE_EXHAUSTED, "the worker sent more than it was allowed to")
        return True

    def consumed(self, size: int) -> None:
        """The reader has taken chunks that cost so many bytes."""
        self._unread -= size
        self._owed += size

    def owe(self, size: int) -> None:
        """A credit came back unsent."""
        self._owed += size

    def grant(self) -> int:
        """The credit to give now; 0 if it is not worth a message."""
        if self._owed < _GRANT_BYTES:
            return 0
        owed, self._owed = self._owed, 0
        return owed


class Reader:
    """Chunks in, messages out, across two threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks: Deque[bytes] = deque()
        self._end: Optional[Tuple[Optional[Error], bytes]] = None
        self._partial = bytearray()

    def put(self, chunk: bytes) -> None:
        """The next part. Credit bounds how much of it can gather here."""
        with self._changed:
            self._chunks.append(chunk)
            self._changed.notify()

    def end(self, error: Optional[Error], last: bytes = b"") -> None:
        """The stream has ended, badly with an error; well with, perhaps, one last message."""
        with self._changed:
            self._end = self._end or (error, last)
            self._changed.notify()

    def get(self, deadline: float) -> Tuple[List[bytes], int, bool]:
        """Waits for what comes next: whole messages, what their chunks cost of the credit, and
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
