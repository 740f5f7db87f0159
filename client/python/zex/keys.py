"""What a worker remembers of keys, so that sending a call twice runs it once.

    nothing ── Work ──▶ running ──▶ answered ── 60 s ──▶ nothing
       │ Ask               ▲            │ too many bytes
       ▼                   │            ▼
     denied ── Work of the asker      spent: it ran, its answer is not kept

When even the bare keys are too many, the oldest are forgotten early; until the time when they would
have been anyway, a worker cannot say "never begun here" of a key that it does not know. It then
says nothing, and the caller gets UNAVAILABLE instead of a second effect. Of the worker's loop
alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Deque, Dict, Generic, NamedTuple, Optional, Tuple, TypeVar

#: How long answers and denials are remembered.
_MEMORY_S = 60.0
#: Bytes of answers that are kept; beyond, only their keys are.
_MAX_ANSWER_BYTES = 64 << 20
#: Keys of answered work that are kept, and of denied.
_MAX_KEYS = 500_000
_MAX_DENIALS = 100_000
#: What an answer costs besides its bytes.
_OVERHEAD_BYTES = 500

Run = TypeVar("Run")


class Answered(NamedTuple):
    """How a piece of work ended: the reply without its address."""

    code: int
    message: str
    chunks: int
    body: bytes
    headers: bytes = b""
    trailers: bytes = b""

    @property
    def cost(self) -> int:
        """Bytes that it takes here."""
        beside = len(self.headers) + len(self.trailers)
        return len(self.body) + beside + len(self.message) + _OVERHEAD_BYTES


class _Denial(NamedTuple):
    attempt: int
    asker: int
    #: The highest number that the asker had given away when it asked: what has no higher one was on
    #: its way, and the asker has given it up.
    number: int
    until: float


class Memory(Generic[Run]):
    """Running, answered and denied keys."""

    def __init__(
        self,
        answer_bytes: int = _MAX_ANSWER_BYTES,
        keys: int = _MAX_KEYS,
        denials: int = _MAX_DENIALS,
    ) -> None:
        self._max_bytes, self._max_keys, self._max_denials = answer_bytes, keys, denials
        #: What runs, by its key.
        self.running: Dict[bytes, Run] = {}
        # The oldest first. None: spent.
        self._answers: "OrderedDict[bytes, Tuple[float, Optional[Answered]]]" = OrderedDict()
        self._keeping: Deque[bytes] = deque()
        self._bytes = 0
        self._denials: "OrderedDict[bytes, _Denial]" = OrderedDict()
        self._blind_until = 0.0

    def answer(self, key: bytes) -> Tuple[bool, Optional[Answered]]:
        """Whether work with this key ended here, and how, if that is still kept."""
        known = self._answers.get(key)
        return known is not None, known[1] if known else None

    def refuses(self, key: bytes, owner: int, number: int, attempt: int) -> bool:
        """Whether this key was denied, and work of this owner, with this number, must not begin."""
        denial = self._denials.get(key)
        if denial is None:
            return False
        return number <= denial.number if denial.asker == owner else attempt <= denial.attempt

    def begin(self, key: bytes, run: Run) -> None:
        """Work with this key begins."""
        self._denials.pop(key, None)
        self.running[key] = run

    def end(self, now: float, key: bytes, answer: Answered) -> None:
        """It has ended."""
        del self.running[key]
        self._answers[key] = (now + _MEMORY_S, answer)
        self._keeping.append(key)
        self._bytes += answer.cost
        while self._bytes > self._max_bytes and self._keeping:
            self._spend(self._keeping.popleft())
        while len(self._answers) > self._max_keys:
            self._blind_until = max(self._blind_until, self._forget_oldest())

    def ask(
        self, now: float, key: bytes, attempt: int, asker: int, number: int
    ) -> Optional[bool]:
        """A broker asks whether it may give work with this key to anybody. True: it runs or ran
        here. False: it never did, and will not for another broker's attempt up to this one, nor for
        work of the asker up to this number. None: nobody can say any more."""
        if key in self.running or key in self._answers:
            return True
        known = self._denials.get(key)
        if known is None and (len(self._denials) >= self._max_denials or now < self._blind_until):
            return None
        # Another broker has a later attempt of it. To deny it to this one, too, would have it try
        # the next worker.
        if known is not None and attempt < known.attempt and asker != known.asker:
            return None
        # Between two askers the later attempt counts: it is what the caller sent last. Questions of
        # one broker may overtake each other; what was promised stays so.
        if known is not None and asker == known.asker:
            attempt, number = max(attempt, known.attempt), max(number, known.number)
        self._denials[key] = _Denial(attempt, asker, number, now + _MEMORY_S)
        self._denials.move_to_end(key)
        return False

    def expire(self, now: float) -> None:
        """Forgets what has had its time."""
        while self._answers and next(iter(self._answers.values()))[0] <= now:
            self._forget_oldest()
        while self._denials and next(iter(self._denials.values())).until <= now:
            self._denials.popitem(last=False)

    def _spend(self, key: bytes) -> None:
        until, answer = self._answers.get(key, (0.0, None))
        if answer is not None:
            self._bytes -= answer.cost
            self._answers[key] = (until, None)

    def _forget_oldest(self) -> float:
        key = next(iter(self._answers))
        if self._keeping and self._keeping[0] == key:
            self._keeping.popleft()
        self._spend(key)
        return self._answers.pop(key)[0]
