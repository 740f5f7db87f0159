"""A client's calls that have not ended, and the streams that callers read.

`Pending` is the record of a call, of the client's loop alone; `Stream` is for the caller's thread.
Used by `client.py`.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any, Callable, Generator, Iterator, Optional

from . import wire
from .streams import Reader, Receiver

#: A call that does not wait for a worker gives up after so long without a ready broker or any pipe:
#: a pipe that is restarted is back by then.
_NO_BROKER_S = 5.0
#: What a caller waits beyond the deadline for the loop, which ends every call by then.
GRACE_S = 5.0


class Pending:
    """A call that has not ended. Of the loop alone."""

    def __init__(self, call: wire.Call, body: bytes, deadline: float) -> None:
        self.call = call
        self.body = body
        self.began = time.monotonic()
        self.deadline = deadline
        self.future: "Future[bytes]" = Future()
        self.reader: Optional[Reader] = None
        #: Set from the first chunk of a stream on.
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
        self._cancel = cancel
        self._messages = self._read(reader, deadline, consumed, cancel, reply_type)

    def __iter__(self) -> Iterator[Any]:
        # Itself: who iterates holds the stream by it, and so the call.
        return self

    def __next__(self) -> Any:
        return next(self._messages)

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
