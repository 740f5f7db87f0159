"""A client's calls that have not ended, and the streams that callers read.

`Pending` is the record of a call, of the client's loop alone; `Stream` is for the caller's thread.
Used by `client.py`.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any, Callable, Generator, Iterator, List, NamedTuple, Optional

from . import wire
from .errors import Code, Error
from .streams import Reader, Receiver, Sender

#: A call that does not wait for a worker gives up after so long without a ready broker or any pipe:
#: a pipe that is restarted is back by then.
_NO_BROKER_S = 5.0
#: What a caller waits beyond the deadline for the loop, which ends every call by then.
GRACE_S = 5.0


class Answer(NamedTuple):
    """A reply, and what came around it."""

    reply: Any
    headers: List[wire.Entry]
    trailers: List[wire.Entry]


class Pending:
    """A call that has not ended. Of the loop alone."""

    def __init__(self, call: wire.Call, body: bytes, deadline: float) -> None:
        self.call = call
        self.body = body
        self.began = time.monotonic()
        self.deadline = deadline
        self.future: "Future[bytes]" = Future()
        self.headers: List[wire.Entry] = []
        self.trailers: List[wire.Entry] = []
        self.reader: Optional[Reader] = None
        #: Of a stream of requests.
        self.sender: Optional[Sender] = None
        #: Set from the first chunk or credit of a stream on.
        self.receiver: Optional[Receiver] = None
        #: Who has said that it has the call.
        self.owner: Optional[int] = None
        self.path = 0
        self.due = 0.0
        #: Given back by every path; to be sent at its due time.
        self.paused = False
        #: How often in a row it came back, since when, and whether any pipe was there to do it.
        self.returns = 0
        self.returned_since = 0.0
        self.bounced = False

    @property
    def hopeless(self) -> bool:
        """Whether it has looked for a broker long enough."""
        waits = bool(self.call.options & wire.WAIT) or not self.returns
        return not waits and time.monotonic() >= self.returned_since + _NO_BROKER_S


class Stream:
    """The messages of a server stream, in order; ends as the stream ends. For one thread.

    One that nobody holds any more takes its call back, read to its end or not begun.
    """

    def __init__(
        self,
        reader: Reader,
        deadline: float,
        consumed: Callable[[int], None],
        cancel: Callable[[], None],
        reply_type: Any,
    ) -> None:
        self._cancel, self._reader, self._deadline = cancel, reader, deadline
        self._reply_type = reply_type
        self._messages = self._read(reader, deadline, consumed, cancel, reply_type)

    def __iter__(self) -> Iterator[Any]:
        # Itself: who iterates holds the stream by it, and so the call.
        return self

    def __next__(self) -> Any:
        return next(self._messages)

    def headers(self) -> List[wire.Entry]:
        """What the answer begins with. Waits for it, or for the first message or the end."""
        return self._reader.wait_for_headers(self._deadline + GRACE_S)

    @property
    def trailers(self) -> List[wire.Entry]:
        """What the answer ended with; empty before its end."""
        return self._reader.trailers

    def only(self) -> "Answer":
        """The one message of a stream that has one; of none, an empty one."""
        with self:
            messages = []
            for message in self:
                messages.append(message)
                if len(messages) > 1:
                    text = "the call was to have one reply, and there are more"
                    raise Error(Code.INTERNAL, text)
        empty: Any = b"" if self._reply_type is None else self._reply_type()
        return Answer(messages[0] if messages else empty, self.headers(), self.trailers)

    def close(self) -> None:
        """Takes the call back, if it has not ended."""
        self._messages.close()
        self._cancel()

    def __del__(self) -> None:
        # The generator does not do it if nothing was ever read.
        self._cancel()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _read(
        reader: Reader,
        deadline: float,
        consumed: Callable[[int], None],
        cancel: Callable[[], None],
        reply_type: Any,
    ) -> Generator[Any, None, None]:
        ended = False
        try:
            while not ended:
                messages, size, ended = reader.get(deadline + GRACE_S)
                for message in messages:
                    yield message if reply_type is None else reply_type.FromString(message)
                if size:
                    consumed(size)
        finally:
            # A stream that is broken, or read no further: its worker need not go on. Of a call
            # that has ended nothing comes of it.
            if not ended:
                cancel()


def request_bytes(request: Any) -> bytes:
    """A request as it travels."""
    body = request.SerializeToString() if hasattr(request, "SerializeToString") else request
    if not isinstance(body, (bytes, bytearray, memoryview)):
        kind = type(request).__name__
        raise TypeError(f"a request is bytes or a protobuf message, not {kind}")
    return bytes(body)


def send_requests(
    requests: Iterator[Any],
    sender: Sender,
    deadline: float,
    pump: Callable[[], object],
    fail: Callable[[Error], None],
) -> None:
    """Starts the thread that goes through the requests of a call; it waits while the worker reads
    nothing, and ends with the call."""

    def send() -> None:
        try:
            for request in requests:
                if sender.push(request_bytes(request), deadline):
                    pump()
            sender.finish()
            pump()
        except Error as error:
            # The call has ended, unless it is the iterable's own.
            fail(error)
        except BaseException as error:
            fail(Error(Code.UNKNOWN, f"the requests failed: {type(error).__name__}: {error}"))
        finally:
            close = getattr(requests, "close", None)
            if close is not None:
                close()

    threading.Thread(target=send, name="zex-requests", daemon=True).start()
