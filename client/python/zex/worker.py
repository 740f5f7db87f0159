"""A worker of the mesh: it registers, beats, runs handlers, remembers keys, and leaves in order.

    worker pipe ── Work ──▶ [ loop ] ── Run ──▶ pool of threads ── handler(request, context)
         ◀── Heartbeat, Reply, Chunk ──┘ ◀────────── outcome ──────────┘

What `protocol.md` §6 and §7 say of a worker is here. The loop beats while handlers run, whatever
they do; a worker takes as much work at once as it has threads (its capacity) and answers the rest
with Busy. All of the state is of the loop's thread, except what a `Context` shares with its
handler.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import socket
import threading
import time
import traceback
from collections import deque
from functools import partial
from typing import Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Set

from . import wire
from .errors import Code, Error, Malformed
from .ids import Address
from .keys import Answered, Memory
from .loop import Endpoints, Loop, random_id
from .streams import BEAT_S, SILENCE_S
from .wire import Steer
from .work import Context, Owner, Run, To, bad, reply_bytes, to_of

log = logging.getLogger("zex")

#: Looked after its runs so much later than it meant to, the worker was away, not the callers.
_AWAY_S = 0.5
#: Pause before what could not be sent is sent again.
_RETRY_S = 0.05
#: A worker that leaves stays so long after it has said that it serves nothing: work that is on its
#: way is to be told Busy. And so long after its last answer, which may be given back, and which a
#: goodbye by another pipe could overtake.
_LEAVE_S = 0.5
#: When its time to drain is over, the last answers have so long to get out.
_LAST_ANSWERS_S = 2 * _LEAVE_S
#: Replies that may wait to be sent again; beyond, they are dropped and their owners heal.
_MAX_RETRIES = 10_000
#: Bytes of their bodies: as many as there are of answers in the memory. Ten thousand of the largest
#: would be 160 GiB.
_MAX_RETRY_BYTES = 64 << 20
#: Owners that one piece of work may be joined by; each took the call over from the one before.
_MAX_OWNERS = 8
#: Owners that sent nothing for so long, and of whom nothing is held, leave the heartbeats.
_OWNER_MEMORY_S = 60.0
#: Most threads of one worker.
_MAX_CAPACITY = 4_096
#: Most labels of one worker, and the longest: each is one more name for each of its services.
_MAX_LABELS = 8
_LABEL_MAX_BYTES = 64
_LABEL = re.compile(r"[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?")
#: How long `stop` waits for handlers, unless told otherwise.
DRAIN_S = 30.0

#: What runs when a method is called: `(request, context)` to a reply, or to an iterator of replies.
Handler = Callable[[Any, "Context"], Any]
#: The same for a whole service: `(method, request, context)`.
ServiceHandler = Callable[[str, bytes, "Context"], Any]


def _labels(labels: Iterable[str]) -> List[str]:
    # An empty one is what splitting an empty setting gives.
    checked = list(dict.fromkeys(label for label in labels if label))
    for label in checked:
        if len(label) > _LABEL_MAX_BYTES or not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label: a word such as gpu, or a pair such as node=a")
    if len(checked) > _MAX_LABELS:
        raise ValueError(f"a worker has at most {_MAX_LABELS} labels, not {len(checked)}")
    return checked


class _Retry(NamedTuple):
    due: float
    until: float
    path: int
    packet: wire.Packet


class Worker(Loop):
    """Serves methods. Register handlers, then `run` (until a signal), or `start` and `stop`.

        worker = zex.Worker("tcp://127.0.0.1:9004", capacity=8)

        @worker.method("pkg.Service", "Method")
        def method(request, context):
            return b"reply"

        worker.run()

    A handler gets the request's bytes and a `Context`, and returns the reply's bytes (or a message
    with `SerializeToString`); one that is a generator answers with a stream. It may raise
    `zex.Error`; any other exception ends the call with INTERNAL and is logged. Handlers run in up to
    `capacity` threads at once. `labels` (`["gpu", "node=a"]`) are for callers that want such a
    worker, such as steps of pipelines with `on` and `prefer`.
    """

    def __init__(
        self,
        worker_pipes: Endpoints = "tcp://127.0.0.1:9004",
        capacity: int = 8,
        name: Optional[str] = None,
        labels: Iterable[str] = (),
    ) -> None:
        if not 1 <= capacity <= _MAX_CAPACITY:
            raise ValueError(f"a capacity is 1 to {_MAX_CAPACITY}, not {capacity}")
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        wire.check_text("worker", self.name)
        # Before there is a loop, which would be left behind.
        checked = _labels(labels)
        super().__init__(worker_pipes, random_id(), "zex-worker")
        self.capacity = capacity
        #: What is special about it: it serves each service under each of these names, too.
        self.labels = checked
        self._methods: Dict[str, Dict[str, Handler]] = {}
        #: Those of them that take a stream of requests.
        self._streams: Dict[str, Set[str]] = {}
        self._services: Dict[str, ServiceHandler] = {}
        self._version = 1
        self._registered = [False] * len(self._endpoints)
        self._look_due = 0.0
        self._beat_due = 0.0
        self._looked_at = 0.0
        self._memory: Memory[Run] = Memory()
        self._owners: Dict[int, Owner] = {}
        # Handlers that run, whether or not their work is answered already: they hold a thread.
        self._busy = 0
        self._retries: Deque[_Retry] = deque()
        self._retry_bytes = 0
        self._draining_until: Optional[float] = None
        self._leave_from = 0.0
        self._drained = threading.Event()
        self._runs: "queue.SimpleQueue[Optional[Run]]" = queue.SimpleQueue()
        self._threads = 0

    # ── before and around its life ──────────────────────────────────────────────────────────

    def method(
        self, service: str, method: str, request_type: Any = None, *, stream: bool = False
    ) -> Callable[[Handler], Handler]:
        """Decorates the handler of one method. With `request_type` (a protobuf message) it gets a
        message of that type instead of bytes; with `stream` an iterator of requests."""
        self._check_service(service)
        wire.check_text("method", method)

        def parse(request: bytes) -> Any:
            try:
                return request_type.FromString(request)
            except Exception as error:
                text = f"the request is no {request_type.__name__}: {error}"
                raise Error(Code.INVALID_ARGUMENT, text) from None

        def add(handler: Handler) -> Handler:
            def parsed(request: Any, context: Context) -> Any:
                return handler(map(parse, request) if stream else parse(request), context)

            self._methods.setdefault(service, {})[method] = (
                handler if request_type is None else parsed
            )
            streams = self._streams.setdefault(service, set())
            (streams.add if stream else streams.discard)(method)
            self._changed()
            return handler

        return add

    def serve(self, service: str, handler: ServiceHandler) -> None:
        """Serves every method of a service (those without a handler of their own) with
        `handler(method, request, context)`."""
        self._check_service(service)
        self._services[service] = handler
        self._changed()

    def _check_service(self, service: str) -> None:
        wire.check_text("service", service)
        if service == wire.MESH_SERVICE:
            raise ValueError(f"{service} is served by the brokers; give the service another name")
        if "@" in service:
            raise ValueError(f"{service}: behind an @ stands a label, and labels are the worker's")
        for label in self.labels:
            wire.check_text("service", f"{service}@{label}")
        count = len({service, *self._methods, *self._services})
        wire.check_services(count * (1 + len(self.labels)))

    def describe(self, service: str, descriptors: bytes) -> None:
        """Hands out `descriptors`, a serialized `google.protobuf.FileDescriptorSet`, to whom asks
        for the service's descriptors (`zex call` does)."""
        self.method(service, wire.DESCRIPTORS_METHOD)(lambda request, context: descriptors)

    def start(self) -> "Worker":
        """Joins the mesh. Returns at once."""
        self._start_thread()
        return self

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Takes no new work, finishes what it holds (for `drain_s` at most), leaves."""
        if self._thread.ident is not None:
            if self._post(lambda: self._drain(time.monotonic() + drain_s)):
                # The loop keeps to `drain_s`; the rest is for a loop that is no more.
                self._drained.wait(drain_s + 5.0)
        self._close()
        for _ in range(self._threads):
            self._runs.put(None)

    def run(self, drain_s: float = DRAIN_S) -> None:
        """Serves until SIGINT or SIGTERM, then stops in order. For the main thread."""
        asked = threading.Event()
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: asked.set()) for number in signals}
        try:
            self.start()
            # Not for ever at a time: a wait without end cannot be interrupted everywhere.
            while not asked.wait(1.0) and self._thread.is_alive():
                pass
            self.stop(drain_s)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> "Worker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ── life, on the loop's thread ──────────────────────────────────────────────────────────

    def _changed(self) -> None:
        def register() -> None:
            if self._draining_until is None:
                self._new_version()

        if self._thread.ident is not None:
            self._post(register)

    def _new_version(self) -> None:
        self._version = (self._version + 1) & 0xFFFF_FFFF
        self._registered = [self._register(path) for path in range(len(self._registered))]

    def _register(self, path: int) -> bool:
        services: List[str] = []
        if self._draining_until is None:
            plain = {**self._methods, **self._services}
            under = [f"{service}@{label}" for service in plain for label in self.labels]
            services = sorted([*plain, *under])
        message = wire.Register(self.name, self._version, self.capacity, services)
        return self._send(path, wire.encode(wire.Packet(message, wire.ALL)))

    def _on_time(self, now: float) -> Optional[float]:
        if self._drained.is_set():
            return None  # A beat after the goodbye would be a comeback.
        if now >= self._beat_due:
            self._beat(now)
        if now >= self._look_due:
            self._look(now)
        if self._draining_until is not None:
            self._end_drain(now)
        urgent = self._memory.running or self._retries or not all(self._registered)
        urgent = urgent or self._draining_until is not None
        return min(self._beat_due, self._look_due) if urgent else self._beat_due

    def _look(self, now: float) -> None:
        """What has waited long enough: deadlines, the beats of streams, what could not be sent."""
        self._look_due = now + _RETRY_S
        if not all(self._registered):
            self._registered = [
                done or self._register(path) for path, done in enumerate(self._registered)
            ]
        was_away, self._looked_at = now - self._looked_at > _AWAY_S, now
        for run in list(self._memory.running.values()):
            sender = run.sender
            if sender is not None and was_away:
                # What its caller said meanwhile may still wait to be read.
                sender.heard_at = max(sender.heard_at, now - SILENCE_S + BEAT_S)
            if now >= run.context.deadline:
                self._stop(run, Error(Code.DEADLINE_EXCEEDED, "the deadline passed at the worker"))
            elif sender is not None and now >= sender.heard_at + SILENCE_S:
                text = f"nothing was heard of the caller of the stream for {SILENCE_S:g} s"
                self._stop(run, Error(Code.UNAVAILABLE, text))
            else:
                if run.receiver is not None and now >= run.receiver.beat_due:
                    self._credit(run, now)
                self._pump(run, now)
        while self._retries and self._retries[0].due <= now:
            self._retry(self._retries.popleft(), now)

    def _beat(self, now: float) -> None:
        self._beat_due = now + wire.BEAT_INTERVAL_S
        self._memory.expire(now)
        for owner, seen in list(self._owners.items()):
            if not seen.held and now - seen.heard_at > _OWNER_MEMORY_S:
                del self._owners[owner]
        held = [wire.Held(owner, o.seen, list(o.held)) for owner, o in self._owners.items()]
        beat = wire.encode(wire.Packet(wire.Heartbeat(self._version, held), wire.ALL))
        for path in range(len(self._endpoints)):
            self._send(path, beat)

    def _drain(self, until: float) -> None:
        if self._draining_until is None:
            self._draining_until = until
            self._leave_from = time.monotonic() + _LEAVE_S
            self._new_version()

    def _end_drain(self, now: float) -> None:
        assert self._draining_until is not None  # Its caller has looked.
        if now >= self._draining_until:
            for run in list(self._memory.running.values()):
                self._stop(
                    run, Error(Code.UNAVAILABLE, "the worker was stopped before it was done")
                )
        waits = self._memory.running or self._retries or now < self._leave_from
        if waits and now < self._draining_until + _LAST_ANSWERS_S:
            return
        if not self._drained.is_set():
            for path in range(len(self._endpoints)):
                self._send(path, wire.encode(wire.Packet(wire.Goodbye(), wire.ALL)))
            self._drained.set()

    def _on_end(self) -> None:
        for run in self._memory.running.values():
            run.context._stopped.set()
            stopped = Error(Code.CANCELLED, "the worker was stopped")
            if run.sender is not None:
                run.sender.break_(stopped)
            if run.reader is not None:
                run.reader.end(stopped)
        self._drained.set()

    # ── what arrives ────────────────────────────────────────────────────────────────────────

    def _on_message(self, path: int, frames: List[bytes]) -> None:
        try:
            packet = wire.decode(frames)
        except Malformed:
            self.dropped += 1
            return
        message = packet.message
        if self._drained.is_set():
            self.dropped += 1
        elif packet.bounced:
            self._bounced(path, packet)
        elif packet.steer.to != "owner":
            self.dropped += 1
        elif isinstance(message, wire.Work):
            # Whom it was asked by its label serves the same.
            service = message.service.partition("@")[0]
            self._work(path, message._replace(service=service), packet.body)
        elif isinstance(message, wire.Ask):
            self._ask(path, packet.steer, message)
        elif isinstance(message, wire.Enquire):
            self._registered[path] = self._register(path)
        elif isinstance(message, (wire.Cancel, wire.Credit, wire.Chunk)):
            run = self._memory.running.get(message.key)
            if run is None:
                self.dropped += 1
            elif isinstance(message, wire.Chunk):
                self._request(run, packet.steer.target, message, packet.body)
            elif isinstance(message, wire.Cancel):
                self._stop(run, Error(Code.CANCELLED, "the caller took the call back"))
            elif run.sender is not None:
                run.sender.heard_at = time.monotonic()
                run.sender.credit(message.upto)
                self._pump(run, time.monotonic())
        else:
            self.dropped += 1

    def _work(self, path: int, work: wire.Work, body: Any) -> None:
        try:
            address = Address.decode(work.address)
        except Malformed:
            self.dropped += 1
            return
        to = To(address.owner, address.number, work.address)
        self._heard(to)
        run = self._memory.running.get(work.key)
        ended, answer = self._memory.answer(work.key)
        if run is not None:
            self._join(run, to, path)
        elif ended:
            text = "this call has run, and its answer is no longer kept"
            self._reply(path, to, work.key, answer or Answered(Code.UNAVAILABLE, text, 0, b""))
        elif self._memory.refuses(work.key, to.owner, to.number, work.attempt) or not self._takes(
            work.service
        ):
            busy = wire.Packet(wire.Busy(work.address, work.key), Steer.owner(to.owner))
            if not self._send_answer(path, busy):
                self.dropped += 1  # Its owner will see by the beats that it is not held.
        elif work.options & wire.REQUESTS and not self._takes_stream(work.service, work.method):
            text = f"{work.service}/{work.method} takes one request here, not a stream of them"
            self._reply(path, to, work.key, Answered(Code.UNIMPLEMENTED, text, 0, b""))
        else:
            self._begin(Run(work, body, to, path))

    def _takes(self, service: str) -> bool:
        serves = service in self._methods or service in self._services
        return serves and self._draining_until is None and self._busy < self.capacity

    def _takes_stream(self, service: str, method: str) -> bool:
        return method in self._streams.get(service, ())

    def _heard(self, to: To) -> Owner:
        owner = self._owners.setdefault(to.owner, Owner())
        owner.seen = max(owner.seen, to.number)
        owner.heard_at = time.monotonic()
        return owner

    def _hold(self, to: To) -> None:
        self._heard(to).held[to.number] = None

    def _release(self, to: To) -> None:
        if to.owner in self._owners:
            self._owners[to.owner].held.pop(to.number, None)

    def _join(self, run: Run, to: To, path: int) -> None:
        """The newest address of each owner gets the answer."""
        for old in [old for old in run.to if old.owner == to.owner and old != to]:
            self._release(old)
        run.to = [old for old in run.to if old.owner != to.owner][1 - _MAX_OWNERS :] + [to]
        run.path = path
        self._hold(to)

    def _begin(self, run: Run) -> None:
        self._hold(run.to[0])
        self._memory.begin(run.key, run)
        run.context._ahead = partial(self._send_headers, run)
        self._credit(run, time.monotonic())
        self._busy += 1
        self._runs.put(run)
        if self._threads < self._busy:
            self._threads += 1
            # Not a ThreadPoolExecutor: a handler that hangs must not keep the process alive.
            threading.Thread(target=self._work_off, name="zex-handler", daemon=True).start()

    # ── streams of requests ─────────────────────────────────────────────────────────────────

    def _request(self, run: Run, owner: int, chunk: wire.Chunk, body: Any) -> None:
        """A part of the requests, or a beat of who sends them."""
        if run.receiver is None or run.reader is None or run.sender is None:
            self.dropped += 1
            return
        now = time.monotonic()
        run.sender.heard_at = now
        try:
            if run.receiver.chunk(now, owner, chunk.number, len(body)):
                run.reader.put(body)
        except Error as error:
            self._stop(run, error)
            return
        if chunk.end:
            run.reader.end(None)

    def _consumed(self, run: Run, size: int) -> None:
        """The handler has read so much."""
        assert run.receiver is not None  # Nobody else reads.
        run.receiver.consumed(size)
        if run.receiver.grant():
            self._credit(run, time.monotonic())

    def _credit(self, run: Run, now: float) -> None:
        """Says how much may come; again each second, for it may have been lost."""
        if run.receiver is None or run.over:
            return
        credit = wire.Packet(
            wire.Credit(run.key, run.receiver.granted), Steer.owner(run.receiver.owner)
        )
        sent = self._send(run.path, wire.encode(credit))
        run.receiver.beat_due = now + (BEAT_S if sent else _RETRY_S)

    def _headers_ahead(self, run: Run) -> None:
        """What a stream begins with, ahead of its first part; the reply says it again."""
        headers, run.headers = run.headers, b""
        to = run.to[-1]
        ahead = wire.Chunk(to.address, run.key, 0, False, headers)
        self._send(run.path, wire.encode(wire.Packet(ahead, Steer.owner(to.owner))))

    # ── what workers are asked ──────────────────────────────────────────────────────────────

    def _ask(self, path: int, asker: Steer, ask: wire.Ask) -> None:
        asked_by = (asker.target, ask.number)
        known = self._memory.ask(time.monotonic(), ask.key, ask.attempt, *asked_by)
        if known is not None:
            answer = wire.Answer(ask.key, wire.HELD if known else wire.DENIED)
            self._send(path, wire.encode(wire.Packet(answer, asker)))

    # ── what ends ───────────────────────────────────────────────────────────────────────────

    def _finished(self, run: Run, outcome: Answered) -> None:
        """A handler is done; what it has queued of a stream still goes out first."""
        self._busy -= 1
        if run.over:
            return
        run.outcome = outcome
        if run.sender is None:
            self._answer(run, outcome)
        else:
            self._pump(run, time.monotonic())

    def _stop(self, run: Run, error: Error) -> None:
        """Nobody wants the handler's outcome: ends the work now, whenever the handler ends."""
        run.context._stopped.set()
        if run.sender is not None:
            run.sender.break_(error)
        if run.reader is not None:
            run.reader.end(error)
        self._answer(run, bad(error))

    def _answer(self, run: Run, outcome: Answered) -> None:
        if run.over:
            return
        run.over = True
        if run.sender is not None:
            outcome = outcome._replace(chunks=run.sender.number)
        self._memory.end(time.monotonic(), run.key, outcome)
        for to in run.to:
            self._release(to)
            self._reply(run.path, to, run.key, outcome)

    def _reply(self, path: int, to: To, key: bytes, answer: Answered) -> None:
        code, message, chunks, body, headers, trailers = answer
        reply = wire.Reply(to.address, key, code, message, chunks, headers, trailers)
        packet = wire.Packet(reply, Steer.owner(to.owner), body)
        if not self._send_answer(path, packet):
            self._keep(path, to, packet, time.monotonic() + _OWNER_MEMORY_S)

    def _send_answer(self, path: int, packet: wire.Packet) -> bool:
        """Sends what its owner waits for; a worker that leaves then stays for a while yet."""
        if self._draining_until is not None:
            self._leave_from = time.monotonic() + _LEAVE_S
        return self._send(path, wire.encode(packet))

    def _keep(self, path: int, to: To, packet: wire.Packet, until: float) -> None:
        """Keeps a reply to send it again; till then its owner hears that it is held."""
        now = time.monotonic()
        size = self._retry_bytes + len(packet.body)
        if now >= until or len(self._retries) >= _MAX_RETRIES or size > _MAX_RETRY_BYTES:
            self.dropped += 1
            return
        self._hold(to)
        self._retry_bytes = size
        packet = packet._replace(bounced=False, pipe=0, peer=bytes(16))
        self._retries.append(
            _Retry(now + _RETRY_S, until, (path + 1) % len(self._endpoints), packet)
        )

    def _retry(self, retry: _Retry, now: float) -> None:
        to = to_of(retry.packet)
        self._release(to)
        self._retry_bytes -= len(retry.packet.body)
        if not self._send_answer(retry.path, retry.packet):
            self._keep(retry.path, to, retry.packet, retry.until)

    def _bounced(self, path: int, packet: wire.Packet) -> None:
        message = packet.message
        if isinstance(message, wire.Reply):
            ended, answer = self._memory.answer(message.key)
            if ended and answer is not None:
                self._keep(path, to_of(packet), packet, time.monotonic() + _OWNER_MEMORY_S)
        elif isinstance(message, wire.Chunk) and packet.body:
            run = self._memory.running.get(message.key)
            if run is not None:
                # Those behind it may have passed it: the stream has a gap.
                text = "a part of the stream could not be delivered"
                self._stop(run, Error(Code.UNAVAILABLE, text))
        elif isinstance(message, wire.Credit):
            run = self._memory.running.get(message.key)
            if run is not None and run.receiver is not None:
                run.receiver.beat_due = time.monotonic() + _RETRY_S
        # Only a living owner has a use for the others.

    def _pump(self, run: Run, now: float) -> None:
        """Sends what a stream has and may send; then its beat, or its end."""
        sender = run.sender
        if sender is None or run.over:
            return
        to = run.to[-1]
        if run.headers:
            self._headers_ahead(run)
        while True:
            part = sender.take()
            if not part:
                break
            chunk = wire.Chunk(to.address, run.key, sender.number + 1)
            if not self._send(
                run.path, wire.encode(wire.Packet(chunk, Steer.owner(to.owner), part))
            ):
                sender.give_back(part)
                return
            sender.number, sender.sent_at = sender.number + 1, now
        if run.outcome is not None and sender.empty:
            self._answer(run, run.outcome)
        elif now - sender.sent_at >= BEAT_S:
            beat = wire.Chunk(to.address, run.key, sender.number)
            if self._send(run.path, wire.encode(wire.Packet(beat, Steer.owner(to.owner)))):
                sender.sent_at = now

    # ── on the handlers' threads ────────────────────────────────────────────────────────────

    def _work_off(self) -> None:
        while True:
            run = self._runs.get()
            if run is None:
                return
            self._post(partial(self._finished, run, self._with_metadata(run, self._handle(run))))

    def _handle(self, run: Run) -> Answered:
        """What a handler gave. Nothing is raised here, `sys.exit()` neither: with its thread the
        worker would lose a part of its capacity."""
        context = run.context
        where = f"{context.service}/{context.method}"
        try:
            try:
                result = self._call(run, where)
                if run.sender is None:
                    return Answered(Code.OK, "", 0, reply_bytes(result, where))
                if isinstance(result, (bytes, bytearray)) or hasattr(result, "SerializeToString"):
                    result = [result]  # To who reads a stream, one reply is a stream of one.
                self._stream(run, result, where)
                return Answered(Code.OK, "", 0, b"")
            except Error as error:
                return bad(error)
        except BaseException as error:
            log.exception("the handler of %s failed", where)
            # Its text may fail as well; this says so instead of raising it.
            text = traceback.format_exception_only(type(error), error)[-1].strip()
            return bad(Error(Code.INTERNAL, f"the handler failed: {text}"))

    def _with_metadata(self, run: Run, outcome: Answered) -> Answered:
        context = run.context
        try:
            headers = wire.pack_metadata(context.headers)
            trailers = wire.pack_metadata(context.trailers)
        except Exception as error:
            return bad(Error(Code.INTERNAL, f"the handler's metadata cannot travel: {error}"))
        return outcome._replace(headers=headers, trailers=trailers)

    def _call(self, run: Run, where: str) -> Any:
        context = run.context
        handler = self._methods.get(context.service, {}).get(context.method)
        if handler is not None:
            if self._takes_stream(context.service, context.method):
                consumed = partial(self._post_consumed, run)
                return handler(run.requests(consumed), context)
            return handler(run.body, context)
        service = self._services.get(context.service)
        if service is None or context.method == wire.DESCRIPTORS_METHOD:
            raise Error(Code.UNIMPLEMENTED, f"{where}: this worker has no such method")
        return service(context.method, run.body, context)

    def _post_consumed(self, run: Run, size: int) -> None:
        self._post(partial(self._consumed, run, size))

    def _send_headers(self, run: Run) -> None:
        if run.context.headers and not run.headers_sent:
            run.headers_sent = True
            run.headers = wire.pack_metadata(run.context.headers)
            self._post(lambda: self._pump(run, time.monotonic()))

    def _stream(self, run: Run, messages: Iterable[Any], where: str) -> None:
        assert run.sender is not None  # Its caller has looked.
        iterator = iter(messages)
        try:
            for message in iterator:
                self._send_headers(run)
                if run.sender.push(reply_bytes(message, where), run.context.deadline):
                    self._post(lambda: self._pump(run, time.monotonic()))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
