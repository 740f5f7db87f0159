"""The one thread that owns the sockets, and how others hand it things to do.

    any thread ── post(function) ──▶ [ loop: a DEALER to each pipe, one timer ] ◀──▶ pipes

The client and the worker derive from `Loop` and say what happens when a message comes and when
their time has come. Nothing here knows what the messages mean. ZeroMQ sockets may be used by one
thread only, so everything that touches them or the state beside them runs on the loop's thread.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections import deque
from typing import Callable, Deque, List, Optional, Sequence, Tuple, Union

import zmq

from .wire import MAX_BODY_BYTES, MAX_HEADER_BYTES

log = logging.getLogger("zex")

#: Messages that may wait in each direction at one socket.
_QUEUE_MESSAGES = 1_000
#: How long a closed socket goes on sending: a goodbye gets out, and nothing waits for a dead pipe.
_LINGER_MS = 500
#: TCP keepalive: idle seconds before the first probe, seconds between probes, probes that stay
#: unanswered. A connection that was cut in its middle is closed, and made anew, after five idle
#: seconds. As in the Rust parts of the mesh, ZMTP's own heartbeats are off on purpose: with any of
#: them libzmq may abort the process when a connection ends while its receiving queue is full
#: (zeromq/libzmq issues 3937 and 4364), and a TTL of ours would arm that timer in the pipe too.
_KEEPALIVE_IDLE_S = 2
_KEEPALIVE_INTERVAL_S = 1
_KEEPALIVE_PROBES = 3
#: Pauses before connecting again, the first and the longest.
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1_000
#: How long one attempt to connect may take; the system's own limit is minutes.
_CONNECT_TIMEOUT_MS = 3_000
#: Messages that are read from one socket before the others and the timer get their turn.
_BURST = 200
#: The longest sleep: the loop then looks at the time whatever it was told.
_MAX_SLEEP_S = 1.0
#: How long `close` waits for the thread, which never blocks.
_JOIN_S = 5.0

Endpoints = Union[str, Sequence[str]]


def endpoints_of(pipes: Endpoints) -> List[str]:
    """`"tcp://a:1,tcp://b:1"` or a sequence of endpoints, as a list."""
    listed = pipes.split(",") if isinstance(pipes, str) else list(pipes)
    listed = [endpoint.strip() for endpoint in listed]
    if not listed or not all(listed):
        raise ValueError(f"{pipes!r} names no pipe; expected for example tcp://127.0.0.1:9000")
    return listed


class Loop:
    """Sockets to some pipes and the thread that owns them."""

    def __init__(self, pipes: Endpoints, routing_id: Optional[bytes], name: str) -> None:
        self._endpoints = endpoints_of(pipes)
        self._context = zmq.Context()
        self._sockets: List[zmq.Socket[bytes]] = []
        try:
            for endpoint in self._endpoints:
                self._sockets.append(self._connect(endpoint, routing_id))
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ValueError(
                f"cannot connect to {endpoint!r}: {error}; expected for example tcp://127.0.0.1:9000"
            ) from None
        self._todo: Deque[Callable[[], None]] = deque()
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.setblocking(False)
        self._closing = False
        # Reentrant: the garbage collector may end a stream, which posts, in the middle of a post.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        #: Messages that were dropped: malformed, or nothing waited for them.
        self.dropped = 0

    def _connect(self, endpoint: str, routing_id: Optional[bytes]) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        if routing_id is not None:
            dealer.routing_id = routing_id
        # Queue only where somebody is connected: else messages gather for a pipe that is not there
        # and come out, long stale, when it is.
        dealer.immediate = 1
        dealer.sndhwm = dealer.rcvhwm = _QUEUE_MESSAGES
        dealer.maxmsgsize = MAX_BODY_BYTES + MAX_HEADER_BYTES
        dealer.linger = _LINGER_MS
        dealer.tcp_keepalive = 1
        dealer.tcp_keepalive_idle = _KEEPALIVE_IDLE_S
        dealer.tcp_keepalive_intvl = _KEEPALIVE_INTERVAL_S
        dealer.tcp_keepalive_cnt = _KEEPALIVE_PROBES
        dealer.reconnect_ivl, dealer.reconnect_ivl_max = _RECONNECT_MS, _RECONNECT_MAX_MS
        dealer.connect_timeout = _CONNECT_TIMEOUT_MS
        dealer.connect(endpoint)
        return dealer

    # ── for any thread ──────────────────────────────────────────────────────────────────────

    def _start_thread(self) -> None:
        self._thread.start()

    def _post(self, function: Callable[[], None]) -> bool:
        """Runs `function` on the loop's thread, soon; False if the loop is closed.

        Whoever posts bounds what it posts: one thing for each call, handler or credit underway.
        """
        with self._lock:
            if self._closing:
                return False
            idle = not self._todo
            self._todo.append(function)
            if not idle:
                return True  # Somebody woke it up already, and it takes all.
            try:
                self._wake_in.send(b"\0")
            except BlockingIOError:
                pass  # Full of wake-ups: it will wake up.
        return True

    def _close(self) -> None:
        """Ends the thread and the sockets; what is in their queues still has half a second."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            try:
                self._wake_in.send(b"\0")
            except BlockingIOError:
                pass
        if self._thread.ident is None:
            self._shut()
        elif threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)

    # ── on the loop's thread ────────────────────────────────────────────────────────────────

    def _on_message(self, path: int, frames: List[bytes]) -> None:
        raise NotImplementedError

    def _on_time(self, now: float) -> Optional[float]:
        """What is due; gives back when the next thing will be."""
        raise NotImplementedError

    def _on_end(self) -> None:
        """The loop ends, because of `_close` or of a mistake in it."""

    def _send(self, path: int, frames: Sequence[bytes]) -> bool:
        """Sends without waiting; False if nobody is connected there or its queue is full."""
        try:
            self._sockets[path].send_multipart(frames, zmq.DONTWAIT)
            return True
        except zmq.Again:
            return False

    def _run(self) -> None:
        try:
            self._poll_until_closed()
        except Exception:
            log.exception("%s: its thread died of a mistake in this package", self._thread.name)
        finally:
            with self._lock:
                self._closing = True
            self._on_end()
            self._shut()

    def _poll_until_closed(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out.fileno(), zmq.POLLIN)
        paths = {}
        for path, dealer in enumerate(self._sockets):
            poller.register(dealer, zmq.POLLIN)
            paths[dealer] = path
        due = self._on_time(time.monotonic())
        while True:
            sleep_s = _MAX_SLEEP_S if due is None else min(_MAX_SLEEP_S, due - time.monotonic())
            ready: List[Tuple[object, int]] = poller.poll(math.ceil(max(0.0, sleep_s) * 1_000))
            for what, _ in ready:
                if what in paths:
                    self._read(paths[what])
            if not self._do_what_was_posted():
                return
            due = self._on_time(time.monotonic())

    def _do_what_was_posted(self) -> bool:
        try:
            self._wake_out.recv(4_096)
        except BlockingIOError:
            pass
        with self._lock:
            todo, self._todo = self._todo, deque()
            closing = self._closing
        for function in todo:
            function()
        return not closing

    def _read(self, path: int) -> None:
        for _ in range(_BURST):
            try:
                frames = self._sockets[path].recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._on_message(path, frames)

    def _shut(self) -> None:
        for dealer in self._sockets:
            dealer.close()
        self._wake_in.close()
        self._wake_out.close()
        # Sends what lingers, for half a second at most, and frees libzmq's threads.
        self._context.term()


def random_id() -> bytes:
    """16 random bytes: an instance id, or the key of a call."""
    return os.urandom(16)
