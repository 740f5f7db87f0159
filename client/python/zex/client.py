"""A client of the mesh: calls of all four kinds, each with exactly one end.

    call(), stream() ──▶ [ loop ] ── Call, Chunk ──▶ in pipes … home … worker
         ▲                  │ ◀── Accepted, Chunk, Credit, Reply, BrokerDown, bounces ──┘
         └── Future, Reader ┘

What `protocol.md` §6 says of a client is here: a call is sent again under its key when there is no
sign of it, when its broker died, when a pipe gives it back; until its deadline. All of the state is
of the loop's thread (`Pending` and below); callers wait on a Future or a Reader. What is particular
to streams is in `flow.py`.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from numbers import Real
from typing import Any, Dict, Iterable, List, Optional, Tuple

from . import wire
from .calls import GRACE_S, Answer, Pending, Stream, request_bytes, send_requests
from .errors import Code, Error, Malformed
from .flow import Flow
from .loop import Endpoints, random_id
from .streams import SILENCE_S, Reader, Sender
from .wire import Steer

#: No sign of a call for so long: it is sent again.
_RESEND_S = 1.0
#: A broker has said that it has the call: so long until it is asked again.
_RESEND_SIGNED_S = 3.0
#: The pauses when every pipe gave a call back, the first and the longest.
_PAUSE_S = 0.05
_PAUSE_MAX_S = 0.5
#: A path that gave something back is nobody's first choice for so long.
_SHUN_S = 0.5
#: From this size on a request asks to be acknowledged: a needless resend would be dear.
_ACKNOWLEDGE_BYTES = 64 << 10
#: Calls of one client that may wait at once, and the bytes of their requests.
_MAX_CALLS = 1 << 16
_MAX_CALL_BYTES = 256 << 20
#: The longest deadline: it travels as milliseconds of 32 bits, 49 days.
_MAX_DEADLINE_S = 0xFFFF_FFFF // 1_000


class Client(Flow):
    """Calls methods of services in the mesh.

        with zex.Client("tcp://127.0.0.1:9000") as client:
            reply = client.call("pkg.Service", "Method", b"request")

    Any thread may use it. Several in pipes are a list, or one text with commas.
    """

    def __init__(self, in_pipes: Endpoints = "tcp://127.0.0.1:9000") -> None:
        super().__init__(in_pipes, random_id(), "zex-client")
        self._calls: Dict[bytes, Pending] = {}
        self._timers: List[Tuple[float, bytes]] = []
        self._shunned_until = [0.0] * len(self._endpoints)
        self._next_path = 0
        # Counted where calls begin and end, on two threads.
        self._counting = threading.Lock()
        self._waiting_calls = 0
        self._waiting_bytes = 0
        self._start_thread()

    # ── for any thread ──────────────────────────────────────────────────────────────────────

    def call(
        self,
        service: str,
        method: str,
        request: Any = b"",
        deadline_s: float = 30.0,
        *,
        idempotent: bool = False,
        wait: bool = False,
        priority: int = wire.DEFAULT_PRIORITY,
        key: Optional[bytes] = None,
        metadata: Iterable[wire.Entry] = (),
        requests: Optional[Iterable[Any]] = None,
        reply_type: Any = None,
    ) -> Any:
        """Calls a method and waits for its reply; raises `Error` if it ends otherwise.

        Arguments of a wrong type or size raise `TypeError` or `ValueError` at once; `deadline_s` is
        49 days at most.

        `request` is bytes, or a message with `SerializeToString`; the reply is bytes, or with
        `reply_type` a message of that type (its `FromString`). `requests`, in its place, is an
        iterable of such, for a method that takes a stream; a thread goes through it. `wait`: wait for
        a worker, until the deadline, where there is none. `idempotent`: running it twice does no harm,
        so it may be given to another worker when the first one died. `priority`: 0 to 9, the higher
        goes first where calls of the service wait for a worker. `key` (16 bytes): the same for every
        try of the same thing; within a minute it runs once. `metadata`: names with texts, or with
        bytes if the name ends in `-bin`, that go along as gRPC's metadata does.
        """
        answer = self.answer(
            service, method, request, deadline_s, idempotent=idempotent, wait=wait, priority=priority,
            key=key, metadata=metadata, requests=requests, reply_type=reply_type,
        )  # fmt: skip
        return answer.reply

    def answer(
        self,
        service: str,
        method: str,
        request: Any = b"",
        deadline_s: float = 30.0,
        *,
        requests: Optional[Iterable[Any]] = None,
        reply_type: Any = None,
        **options: Any,
    ) -> Answer:
        """`call`, with what came around the reply: `reply`, `headers`, `trailers`. Those of a call that
        ended badly are in the `Error`."""
        if requests is not None:
            options.pop("idempotent", None)  # A stream runs at most once.
            stream = self.stream(
                service,
                method,
                request,
                deadline_s,
                requests=requests,
                reply_type=reply_type,
                **options,
            )
            return stream.only()
        wanted = (wire.IDEMPOTENT if options.pop("idempotent", False) else 0) | _wait(options)
        pending = self._pending(service, method, request, deadline_s, wanted, **options)
        self._begin(pending)
        try:
            reply = pending.future.result(deadline_s + GRACE_S)
        except FutureTimeout:
            raise Error(Code.INTERNAL, "the client's own thread did not end the call") from None
        except BaseException as error:
            if not isinstance(error, Error):  # Ctrl-C: nobody waits any more.
                self._cancel(pending)
            raise
        message = reply if reply_type is None else reply_type.FromString(reply)
        return Answer(message, pending.headers, pending.trailers)

    def submit(
        self,
        service: str,
        method: str,
        request: Any = b"",
        deadline_s: float = 30.0,
        *,
        idempotent: bool = False,
        wait: bool = False,
        priority: int = wire.DEFAULT_PRIORITY,
        key: Optional[bytes] = None,
        metadata: Iterable[wire.Entry] = (),
    ) -> "Future[bytes]":
        """`call`, without waiting: a Future of the reply's bytes."""
        options = (wire.IDEMPOTENT if idempotent else 0) | (wire.WAIT if wait else 0)
        pending = self._pending(
            service, method, request, deadline_s, options, priority, key, metadata
        )
        self._begin(pending)
        return pending.future

    def stream(
        self,
        service: str,
        method: str,
        request: Any = b"",
        deadline_s: float = 30.0,
        *,
        wait: bool = False,
        priority: int = wire.DEFAULT_PRIORITY,
        key: Optional[bytes] = None,
        metadata: Iterable[wire.Entry] = (),
        requests: Optional[Iterable[Any]] = None,
        reply_type: Any = None,
    ) -> "Stream":
        """Calls a method that answers with a stream: an iterator of its messages.

        The iterator raises `Error` where the stream ends badly. A reader that is slow slows the
        worker. To stop early, `close` it, or use `with`. With `requests`, for a method that takes a
        stream, a thread goes through that iterable while the answers are read; a worker that is slow
        slows it.
        """
        options = wire.STREAM | (wire.WAIT if wait else 0)
        if requests is not None:
            if request != b"":
                raise TypeError("a call has one request or a stream of them, not both")
            iterator, options = iter(requests), options | wire.REQUESTS
        pending = self._pending(
            service, method, request, deadline_s, options, priority, key, metadata
        )
        reader = pending.reader = Reader()
        if requests is not None:
            pending.sender = Sender(0)
        self._begin(pending)
        consumed, cancel = partial(self._consumed, pending), partial(self._cancel, pending)
        if pending.sender is not None:
            pump = partial(self._post, partial(self._pump, pending))
            fail = partial(self._give_up, pending)
            send_requests(iterator, pending.sender, pending.deadline, pump, fail)
        return Stream(reader, pending.deadline, consumed, cancel, reply_type)

    def close(self) -> None:
        """Ends every call that waits with CANCELLED, and the connections."""
        self._close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pending(
        self,
        service: str,
        method: str,
        request: Any,
        deadline_s: float,
        options: int,
        priority: int = wire.DEFAULT_PRIORITY,
        key: Optional[bytes] = None,
        metadata: Iterable[wire.Entry] = (),
    ) -> Pending:
        body = request_bytes(request)
        if key is not None and not isinstance(key, bytes):
            raise TypeError(f"a key is 16 bytes, not {type(key).__name__}")
        if key is not None and len(key) != 16:
            raise ValueError(f"a key has 16 bytes, not {len(key)}")
        if not isinstance(deadline_s, Real):
            raise TypeError(f"deadline_s is a number, not {type(deadline_s).__name__}")
        if not abs(deadline_s) <= _MAX_DEADLINE_S:  # So that nan is refused, too.
            text = f"deadline_s is a finite number, at most {_MAX_DEADLINE_S}, not {deadline_s}"
            raise ValueError(text)
        try:
            wire.check_text("service", service)
            wire.check_text("method", method)
        except Malformed as error:
            raise Error(Code.INVALID_ARGUMENT, str(error)) from None
        if len(body) > wire.MAX_BODY_BYTES:
            raise Error(
                Code.INVALID_ARGUMENT,
                f"the request has {len(body)} bytes, at most {wire.MAX_BODY_BYTES} travel",
            )
        if not 0 <= priority <= wire.MAX_PRIORITY:
            raise Error(
                Code.INVALID_ARGUMENT, f"a priority is 0 to {wire.MAX_PRIORITY}, not {priority}"
            )
        try:
            packed = wire.pack_metadata(metadata)
        except ValueError as error:
            raise Error(Code.INVALID_ARGUMENT, str(error)) from None
        if deadline_s <= 0:
            raise Error(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call")
        if len(body) >= _ACKNOWLEDGE_BYTES:
            options |= wire.ACKNOWLEDGE
        call = wire.Call(key or random_id(), service, method, 0, 0, 0, options, priority, packed)
        return Pending(call, body, time.monotonic() + deadline_s)

    def _begin(self, pending: Pending) -> None:
        with self._counting:
            bytes_waiting = self._waiting_bytes + len(pending.body)
            if self._waiting_calls >= _MAX_CALLS or bytes_waiting > _MAX_CALL_BYTES:
                raise Error(
                    Code.RESOURCE_EXHAUSTED,
                    f"{self._waiting_calls} calls of this client wait already",
                )
            self._waiting_calls += 1
            self._waiting_bytes = bytes_waiting
        if not self._post(lambda: self._admit(pending)):
            raise Error(Code.CANCELLED, "this client is closed")

    def _cancel(self, pending: Pending) -> None:
        error = Error(Code.CANCELLED, "the caller took the call back")
        self._post(lambda: self._take_back(pending, error))

    def _give_up(self, pending: Pending, error: Error) -> None:
        self._post(lambda: self._take_back(pending, error))

    def _consumed(self, pending: Pending, size: int) -> None:
        def consumed() -> None:
            if pending.receiver is not None:
                pending.receiver.consumed(size)
                self._grant(pending)

        self._post(consumed)

    # ── calls, on the loop's thread ─────────────────────────────────────────────────────────

    def _admit(self, pending: Pending) -> None:
        key = pending.call.key
        if self._closing:
            self._settle(pending, Error(Code.CANCELLED, "the client was closed"))
            return
        if key in self._calls:
            error = Error(Code.ALREADY_EXISTS, "a call of this client with this key waits already")
            self._settle(pending, error)
            return
        self._calls[key] = pending
        self._send_call(pending, self._first_path())

    def _first_path(self) -> int:
        """Where a new call goes: round and round, past those that gave something back lately."""
        now, paths = time.monotonic(), len(self._endpoints)
        for _ in range(paths):
            path, self._next_path = self._next_path, (self._next_path + 1) % paths
            if self._shunned_until[path] <= now:
                return path
        return self._next_path

    def _send_call(self, pending: Pending, path: int) -> None:
        """Sends a call as its record says, by `path`, and sets when it is looked at again."""
        while True:
            now = time.monotonic()
            pending.path, pending.paused = path, False
            pending.call = pending.call._replace(
                deadline_ms=_milliseconds(pending.deadline - now),
                age_ms=_milliseconds(now - pending.began),
            )
            wait_s = _RESEND_S if pending.owner is None else _RESEND_SIGNED_S
            self._set_due(pending, now + wait_s * random.uniform(1, 1.125))
            # Who has accepted it has it, even where another broker has become the service's home.
            owner = pending.owner
            steer = Steer.home(pending.call.service) if owner is None else Steer.owner(owner)
            packet = wire.Packet(pending.call, steer, pending.body)
            if self._send(path, wire.encode(packet)):
                return
            next_path = self._came_back(pending, bounced=False)
            if next_path is None:
                return
            path = next_path

    def _resend(self, pending: Pending) -> None:
        """Sends a call again because nobody can know whether the last attempt arrived."""
        pending.returns, pending.bounced = 0, False
        # From 255 on a worker that denied the key refuses it, which is safe.
        attempt = min(pending.call.attempt + 1, 255)
        pending.call = pending.call._replace(attempt=attempt)
        self._send_call(pending, self._after(pending.path))

    def _after(self, path: int) -> int:
        return (path + 1) % len(self._endpoints)

    def _came_back(self, pending: Pending, bounced: bool) -> Optional[int]:
        """A pipe gave a call back, or nobody is connected: the path to try now, if there is one."""
        now, paths = time.monotonic(), len(self._endpoints)
        self._shunned_until[pending.path] = now + _SHUN_S
        if not pending.returns:
            pending.returned_since = now
        pending.bounced |= bounced
        pending.returns += 1
        if pending.returns < paths:
            return self._after(pending.path)
        if pending.hopeless:
            self._end(pending, self._no_broker(pending))
            return None
        pending.paused = True
        rounds = min(pending.returns - paths, 16)
        pause_s = min(_PAUSE_S * 2**rounds, _PAUSE_MAX_S / 2) * random.uniform(1, 2)
        self._set_due(pending, now + pause_s)
        return None

    def _no_broker(self, pending: Pending) -> Error:
        where = ", ".join(self._endpoints)
        if pending.bounced:
            text = f"no ready broker behind {where}; is one running?"
        else:
            text = f"no in pipe answers at {where}; is the mesh up?"
        return Error(Code.UNAVAILABLE, text)

    def _too_late(self, pending: Pending) -> Error:
        """How a call ends at its deadline: one that is with nobody, and never was, as it would
        have a little later; its caller needs to know that rather than its deadline."""
        text = "no answer by the deadline"
        if not pending.paused:
            return Error(Code.DEADLINE_EXCEEDED, text)
        nobody = self._no_broker(pending)
        may_have_begun = pending.call.attempt > 0 or pending.owner is not None
        if may_have_begun or pending.call.options & wire.WAIT:
            return Error(Code.DEADLINE_EXCEEDED, f"{text}: {nobody.message}")
        return nobody

    def _end(self, pending: Pending, error: Optional[Error], body: bytes = b"") -> None:
        """The one place where a call that was sent ends."""
        if self._calls.get(pending.call.key) is pending:
            del self._calls[pending.call.key]
            self._settle(pending, error, body)

    def _settle(self, pending: Pending, error: Optional[Error], body: bytes = b"") -> None:
        with self._counting:
            self._waiting_calls -= 1
            self._waiting_bytes -= len(pending.body)
        if pending.sender is not None:
            ended = Error(Code.CANCELLED, "the call has ended") if error is None else error
            pending.sender.break_(ended)
        if pending.reader is not None:
            pending.reader.end(error, body)
        elif pending.future.set_running_or_notify_cancel():
            if error is None:
                pending.future.set_result(body)
            else:
                pending.future.set_exception(error)

    def _take_back(self, pending: Pending, error: Error) -> None:
        """Ends a call that somebody may still work on."""
        if self._calls.get(pending.call.key) is not pending:
            return
        owner = pending.receiver.owner if pending.receiver else pending.owner
        steer = Steer.home(pending.call.service) if owner is None else Steer.owner(owner)
        # A courtesy: if it is lost, what it would have stopped ends by its deadline.
        self._send(pending.path, wire.encode(wire.Packet(wire.Cancel(pending.call.key), steer)))
        self._end(pending, error)

    # ── time ────────────────────────────────────────────────────────────────────────────────

    def _set_due(self, pending: Pending, due: float) -> None:
        pending.due = min(due, pending.deadline)
        heapq.heappush(self._timers, (pending.due, pending.call.key))

    def _on_time(self, now: float) -> Optional[float]:
        while self._timers and self._timers[0][0] <= now:
            due, key = heapq.heappop(self._timers)
            pending = self._calls.get(key)
            # Times that were moved stay in the heap until they come, and mean nothing then.
            if pending is not None and pending.due == due:
                self._look_at(pending, now)
        return self._timers[0][0] if self._timers else None

    def _look_at(self, pending: Pending, now: float) -> None:
        if now >= pending.deadline:
            self._end(pending, self._too_late(pending))
        elif pending.receiver is not None:
            if now >= pending.receiver.heard_at + SILENCE_S:
                text = f"nothing was heard of the stream for {SILENCE_S:g} s"
                self._take_back(pending, Error(Code.UNAVAILABLE, text))
            else:
                self._beat(pending, now)
        elif pending.paused and pending.hopeless:
            self._end(pending, self._no_broker(pending))
        elif pending.paused:
            self._send_call(pending, self._after(pending.path))
        else:
            self._resend(pending)

    # ── what arrives ────────────────────────────────────────────────────────────────────────

    def _on_message(self, path: int, frames: List[bytes]) -> None:
        try:
            packet = wire.decode(frames)
        except Malformed:
            self.dropped += 1
            return
        if packet.bounced:
            self._bounced(packet)
        elif packet.steer.to != "owner":
            self.dropped += 1
        elif isinstance(packet.message, wire.BrokerDown):
            self._broker_down(path, packet.steer.target)
        elif isinstance(packet.message, (wire.Reply, wire.Chunk, wire.Credit, wire.Accepted)):
            pending = self._calls.get(packet.message.key)
            if pending is None:
                self.dropped += 1
            else:
                self._answered(pending, packet)
        else:
            self.dropped += 1

    def _answered(self, pending: Pending, packet: wire.Packet) -> None:
        message, broker = packet.message, packet.steer.target
        body = packet.body
        assert isinstance(body, bytes)  # Only EZ messages have lists, and none comes here.
        if isinstance(message, wire.Reply):
            self._reply(pending, message, body)
        elif isinstance(message, wire.Chunk):
            self._chunk(pending, broker, message, body)
        elif isinstance(message, wire.Credit):
            self._allowed(pending, broker, message)
        elif pending.receiver is None:
            pending.owner, pending.paused = broker, False
            pending.returns, pending.bounced = 0, False
            self._set_due(pending, time.monotonic() + _RESEND_SIGNED_S * random.uniform(1, 1.125))

    def _reply(self, pending: Pending, reply: wire.Reply, body: bytes) -> None:
        headers, trailers = map(wire.unpack_metadata, (reply.headers, reply.trailers))
        pending.headers, pending.trailers = headers, trailers
        if pending.reader is not None:
            pending.reader.headers(headers)
            pending.reader.trailers = trailers
        if reply.code != Code.OK:
            error = Error(reply.code, reply.message, body)
            error.headers, error.trailers = headers, trailers
            self._end(pending, error)
            return
        chunks = pending.receiver.last if pending.receiver else 0
        if pending.reader is not None and chunks != reply.chunks:
            text = f"the stream has {reply.chunks} parts, {chunks} arrived"
            self._end(pending, Error(Code.UNAVAILABLE, text))
        else:
            self._end(pending, None, body)

    def _waits(self, pending: Pending) -> bool:
        return self._calls.get(pending.call.key) is pending

    def _bounced(self, packet: wire.Packet) -> None:
        message = packet.message
        if isinstance(message, (wire.Call, wire.Credit, wire.Chunk)) and message.key in self._calls:
            pending = self._calls[message.key]
            if not isinstance(message, wire.Call):
                self._returned(pending, message, bool(packet.body))
                return
            latest = message.attempt == pending.call.attempt
            if latest and not pending.paused and pending.receiver is None:
                path = self._came_back(pending, bounced=True)
                if path is not None:
                    self._send_call(pending, path)
        else:
            self.dropped += 1

    def _broker_down(self, path: int, broker: int) -> None:
        """What that broker had, or may have had, is sent again; its streams are over.

        A call whose owner is not known was steered by the pipe that it went by: only that pipe's
        word counts.
        """
        for pending in list(self._calls.values()):
            if pending.receiver is not None:
                if pending.receiver.owner == broker:
                    self._take_back(
                        pending, Error(Code.UNAVAILABLE, "the stream's broker has died")
                    )
            elif pending.owner == broker or (
                pending.owner is None and pending.path == path and not pending.paused
            ):
                pending.owner = None
                self._resend(pending)

    def _on_end(self) -> None:
        for function in self._todo:  # Calls that were posted and never admitted.
            function()
        for pending in list(self._calls.values()):
            self._end(pending, Error(Code.CANCELLED, "the client was closed"))


def _wait(options: Dict[str, Any]) -> int:
    return wire.WAIT if options.pop("wait", False) else 0


def _milliseconds(seconds: float) -> int:
    """For the wire: rounded up, so that what is left is never 0, and no longer than 32 bits."""
    return min(max(0, int(-(-seconds * 1_000 // 1))), 0xFFFF_FFFF)
