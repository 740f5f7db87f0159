"""The streams of a client's calls, on the loop's thread: what comes, what goes, and the credit for both.

    Reader ◀─ Receiver ◀─ Chunk ─┐                 ┌─ Chunk ─ Sender ◀─ thread that reads the requests
                                 ├─ owner ─ worker ┤
              credit ── Credit ─▶┘                 └▶ Credit

What protocol.md §6a says of a client. `client.py` derives from it.
"""

from __future__ import annotations

import time

from . import wire
from .calls import Pending
from .errors import Code, Error
from .loop import Loop
from .streams import BEAT_S, SILENCE_S, Receiver
from .wire import Steer

#: What could not be sent is tried again after so long.
_RETRY_S = 0.05


class Flow(Loop):
    """The part of a client that knows of streams."""

    def _set_due(self, pending: Pending, due: float) -> None:
        raise NotImplementedError

    def _take_back(self, pending: Pending, error: Error) -> None:
        raise NotImplementedError

    def _waits(self, pending: Pending) -> bool:
        """Whether the call has not ended."""
        raise NotImplementedError

    # ── what comes ──────────────────────────────────────────────────────────────────────────

    def _chunk(self, pending: Pending, broker: int, chunk: wire.Chunk, body: bytes) -> None:
        if pending.reader is None:
            self.dropped += 1
            return
        receiver = self._route(pending, broker)
        try:
            if receiver.chunk(time.monotonic(), broker, chunk.number, len(body)):
                pending.reader.put(body)
            elif chunk.headers:
                pending.reader.headers(wire.unpack_metadata(chunk.headers))
        except Error as error:
            self._take_back(pending, error)

    def _allowed(self, pending: Pending, broker: int, credit: wire.Credit) -> None:
        """The worker reads requests, and lets so much of them come."""
        if pending.sender is None:
            self.dropped += 1
            return
        receiver = self._route(pending, broker)
        if broker != receiver.owner:
            self._take_back(pending, Error(Code.UNAVAILABLE, "the stream changed its broker"))
            return
        receiver.heard_at = time.monotonic()
        pending.sender.credit(credit.upto)
        self._pump(pending)

    def _route(self, pending: Pending, broker: int) -> Receiver:
        """What comes first of a stream names its owner: everything goes there from now on."""
        if pending.receiver is None:
            now = time.monotonic()
            pending.receiver = Receiver(broker, now)
            self._set_due(pending, now + BEAT_S)
        return pending.receiver

    def _grant(self, pending: Pending) -> None:
        receiver = pending.receiver
        if receiver is None or not self._waits(pending):
            return
        upto = receiver.grant()
        if upto:
            self._credit(pending, receiver, upto)

    def _credit(self, pending: Pending, receiver: Receiver, upto: int) -> None:
        credit = wire.Packet(wire.Credit(pending.call.key, upto), Steer.owner(receiver.owner))
        if not self._send(pending.path, wire.encode(credit)):
            self._again(pending, receiver)

    def _again(self, pending: Pending, receiver: Receiver) -> None:
        receiver.beat_due = time.monotonic() + _RETRY_S
        self._set_due(pending, receiver.beat_due)

    # ── what goes ───────────────────────────────────────────────────────────────────────────

    def _pump(self, pending: Pending) -> None:
        """Sends what there is of the requests, and may be sent."""
        sender, receiver = pending.sender, pending.receiver
        if sender is None or receiver is None or not self._waits(pending):
            return
        while True:
            part = sender.take()
            end = sender.finished and sender.empty
            if not part and (not end or sender.end_sent):
                return
            if not self._send_chunk(pending, sender.number + bool(part), end, part):
                if part:
                    sender.give_back(part)
                self._again(pending, receiver)
                return
            sender.number += bool(part)
            sender.end_sent = end

    def _send_chunk(self, pending: Pending, number: int, end: bool, part: bytes = b"") -> bool:
        assert pending.receiver is not None  # Its callers have looked.
        chunk = wire.Chunk(b"", pending.call.key, number & 0xFFFF_FFFF, end)
        packet = wire.Packet(chunk, Steer.owner(pending.receiver.owner), part)
        return self._send(pending.path, wire.encode(packet))

    def _beat(self, pending: Pending, now: float) -> None:
        """Says again what was said last, each second: it may have been lost, and the worker hears us
        by it."""
        receiver, sender = pending.receiver, pending.sender
        assert receiver is not None  # Its caller has looked.
        due = min(receiver.beat_due, receiver.heard_at + SILENCE_S)
        if now >= receiver.beat_due:
            due = receiver.beat_due = now + BEAT_S
            self._set_due(pending, due)
            self._pump(pending)
            if sender is not None:
                self._send_chunk(pending, sender.number, sender.end_sent)
            self._credit(pending, receiver, receiver.granted)
        else:
            self._set_due(pending, due)

    def _returned(self, pending: Pending, message: object, part: bool) -> None:
        """A pipe gave back what was said of a stream."""
        receiver = pending.receiver
        if receiver is None:
            return
        if isinstance(message, wire.Chunk) and (part or message.end):
            # Those behind it may have passed it: the stream has a gap.
            text = "a part of the requests could not be delivered"
            self._take_back(pending, Error(Code.UNAVAILABLE, text))
        elif isinstance(message, wire.Credit):
            self._again(pending, receiver)
