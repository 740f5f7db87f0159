"""The EZ dialect, the protocol of 2020: its frames, and a client and a worker that speak it.

    client → in pipe        "" 02 id service body…
    in pipe → client        "" id body…
    worker → worker pipe    "" 01 01 service               (beat, and registration)
    worker pipe → worker    "" address id body…
    worker → worker pipe    "" 01 02 address "" id body…   (reply)

For scripts that were written for that protocol and their way out of it; `zex.Client` and
`zex.Worker` have deadlines, keys, status codes and streams, which it has not. By convention the
first frame of an answer is OK or ERR.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from functools import partial
from typing import Callable, List, NamedTuple, Optional, Sequence

import zmq

from .errors import Code, Error, Malformed
from .loop import Loop, random_id
from .wire import check_name

log = logging.getLogger("zex")

#: How often EZ workers beat.
BEAT_INTERVAL_S = 3.0
#: The mesh ends a request after so long.
TIMEOUT_S = 60.0
#: Work that may wait for a thread of one worker; the mesh gives it a thousand at once.
_MAX_QUEUED = 1_000

OK = b"OK"
ERR = b"ERR"


class Work(NamedTuple):
    """What a worker gets."""

    address: bytes
    id: bytes
    body: List[bytes]


class Answer(NamedTuple):
    """What a client gets."""

    id: bytes
    body: List[bytes]


def encode_request(id: bytes, service: bytes, body: Sequence[bytes]) -> List[bytes]:
    """What a client sends."""
    return [b"", b"\x02", id, service, *body]


def encode_beat(service: bytes) -> List[bytes]:
    """A worker lives and serves this."""
    return [b"", b"\x01", b"\x01", service]


def encode_reply(work: Work, body: Sequence[bytes]) -> List[bytes]:
    """A worker's answer."""
    return [b"", b"\x01", b"\x02", work.address, b"", work.id, *body]


def decode_answer(frames: Sequence[bytes]) -> Answer:
    """What a client got; `Malformed` if it is no answer."""
    if len(frames) < 2 or frames[0]:
        raise Malformed("ez", 'an answer is "" id body…')
    return Answer(frames[1], list(frames[2:]))


def decode_work(frames: Sequence[bytes]) -> Work:
    """What a worker got; `Malformed` if it is no work."""
    if len(frames) < 3 or frames[0]:
        raise Malformed("ez", 'work is "" address id body…')
    return Work(frames[1], frames[2], list(frames[3:]))


class EzClient:
    """Sends one request at a time. Any thread may use it; the others wait their turn."""

    def __init__(self, in_pipe: str = "tcp://127.0.0.1:9000") -> None:
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.immediate = 1  # A request waits for its pipe here, not in a queue.
        self._dealer.connect(in_pipe)
        self._lock = threading.Lock()

    def request(self, service: str, *body: bytes, timeout_s: float = TIMEOUT_S) -> List[bytes]:
        """Sends a request and waits for its answer: the body frames, OK or ERR first. Raises
        `Error` if there is none in time. `service` may be a native `pkg.Service/Method`."""
        check_name("service", service)
        deadline = time.monotonic() + timeout_s
        id = random_id()
        with self._lock:
            self._wait(zmq.POLLOUT, deadline)
            self._dealer.send_multipart(encode_request(id, service.encode(), body), zmq.DONTWAIT)
            while True:
                self._wait(zmq.POLLIN, deadline)
                try:
                    answer = decode_answer(self._dealer.recv_multipart(zmq.DONTWAIT))
                except Malformed:
                    continue
                if answer.id == id:  # Or it is the late answer of a request that was given up.
                    return answer.body

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._dealer.close()
            self._context.term()

    def __enter__(self) -> "EzClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, event: int, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._dealer.poll(int(left_s * 1_000) + 1, event):
            raise Error(Code.DEADLINE_EXCEEDED, "no answer in time; is the mesh up?")


class EzWorker(Loop):
    """Serves one service: `handler(body frames)` gives the frames of the answer, OK or ERR first.

    Handlers run in `threads` threads, while the worker beats. `start` and `stop` it, or use `with`.
    """

    def __init__(
        self,
        service: str,
        handler: Callable[[List[bytes]], Sequence[bytes]],
        worker_pipe: str = "tcp://127.0.0.1:9004",
        threads: int = 1,
    ) -> None:
        check_name("service", service)
        super().__init__([worker_pipe], None, "zex-ez-worker")
        self._service = service.encode()
        self._handler = handler
        self._works: "queue.Queue[Optional[Work]]" = queue.Queue(_MAX_QUEUED)
        self._beat_due = 0.0
        self._threads = [
            threading.Thread(target=self._work_off, name="zex-ez-handler", daemon=True)
            for _ in range(threads)
        ]

    def start(self) -> "EzWorker":
        """Joins the mesh. Returns at once."""
        for thread in self._threads:
            thread.start()
        self._start_thread()
        return self

    def stop(self) -> None:
        """Leaves. The dialect has no goodbye: the mesh notices the closed connection."""
        self._close()

    def __enter__(self) -> "EzWorker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _on_time(self, now: float) -> Optional[float]:
        if now >= self._beat_due:
            sent = self._send(0, encode_beat(self._service))
            # Not connected yet: the first beat is the registration, so it is not put off.
            self._beat_due = now + (BEAT_INTERVAL_S if sent else 0.05)
        return self._beat_due

    def _on_message(self, path: int, frames: List[bytes]) -> None:
        self._beat_due = 0.0  # As ever in this dialect: a beat after every message.
        try:
            work = decode_work(frames)
        except Malformed:
            self.dropped += 1
            return
        try:
            self._works.put_nowait(work)
        except queue.Full:
            self._reply(work, [ERR, b"too much work waits at this worker"])

    def _reply(self, work: Work, body: Sequence[bytes]) -> None:
        if not self._send(0, encode_reply(work, body)):
            self.dropped += 1

    def _on_end(self) -> None:
        while True:
            try:
                self._works.get_nowait()
            except queue.Empty:
                break
        for _ in self._threads:
            self._works.put_nowait(None)

    def _work_off(self) -> None:
        while True:
            work = self._works.get()
            if work is None:
                return
            try:
                body = list(self._handler(work.body))
            except Exception:
                log.exception("the handler of %s failed", self._service.decode())
                body = [ERR, b"worker exception"]
            self._post(partial(self._reply, work, body))
