"""What can go wrong: a call that ended badly (`Error`), bytes that are no message (`Malformed`)."""

from __future__ import annotations

import enum
from typing import List, Tuple, Union


class Code(enum.IntEnum):
    """The seventeen gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @classmethod
    def _missing_(cls, value: object) -> "Code":
        # A number that gRPC does not have is UNKNOWN, as its libraries treat it.
        return cls.UNKNOWN


class Error(Exception):
    """How a call ended, if not well. A handler raises it to end its call so."""

    def __init__(self, code: int, message: object, details: bytes = b"") -> None:
        if not isinstance(details, (bytes, bytearray, memoryview)):
            raise TypeError(f"the details of an error are bytes, not {type(details).__name__}")
        super().__init__(code, message, details)
        #: The class of the end.
        self.code = Code(code)
        #: One line for a person; an exception that was given as one becomes its text.
        self.message = str(message)
        #: A serialized `google.rpc.Status`, or nothing.
        self.details = bytes(details)
        #: What the answer began and ended with: names with texts, or with bytes if they end in `-bin`.
        self.headers: List[Tuple[str, Union[str, bytes]]] = []
        self.trailers: List[Tuple[str, Union[str, bytes]]] = []

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Malformed(ValueError):
    """Bytes from outside that are no message. `reason` is the class of the mistake, as the
    vectors name it: short, magic, version, header-too-long, kind, header, frame-count, name,
    services, address, ez, body-too-long."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class RecordingError(Exception):
    """Something that cannot be said in a pipeline, while one is recorded."""


class RunFailed(Exception):
    """A run of a pipeline that ended badly; `outcome` has it with its steps."""

    def __init__(self, outcome: object) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome
