"""Records calls of stubs as a pipeline, the document of spec/pipelines.md.

    with mesh.record("spread") as pipeline:      ┌─▶ Recording: groups ▶ steps ─ end ─▶ definition
        for user in users.List(…):  ── channel ──┤       loops: each
            groups.Add(…)                        └─▶ stand-ins back to the script (`recorded`)

Calls follow each other in a pipeline as they do in the script, and those in a loop over a recorded
list or stream are made once for every item. Made by `mesh`, which hands it the calls of its channels.
"""

from __future__ import annotations

import json
import random
import re
import weakref
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Union,
)

from .errors import RecordingError
from .inputs import Inputs
from .recorded import (
    Expression,
    Items,
    Kept,
    Mark,
    Message,
    Recorded,
    Text,
    Truth,
    combined,
    expression_of,
    made,
    name_of,
)  # fmt: skip

if TYPE_CHECKING:
    from .mesh import Mesh
    from .pipelines import Run

#: The most steps of a pipeline (pipeline/src/definition.rs).
_STEPS_MAX = 1000
#: The longest id of a step, bytes.
_ID_MAX_BYTES = 64
#: Names that mean something else in expressions.
_RESERVED = frozenset(
    "params item index run true false none not and or in is if else range dict namespace debug loop self".split()
)
#: What can be said of a step besides its call and its input.
_OPTIONS = frozenset("concurrency retry timeout deadline on_failure idempotent".split())
#: Marks that are numbers: all types of whole numbers hold them, and a float of 32 bits its own.
_WHOLE_MARKS = (1 << 30, 1 << 31)
_REAL_SCALE = 2.0**-90

#: The recording that calls go into, in this thread or task.
ACTIVE: "ContextVar[Optional[Recording]]" = ContextVar("zex-recording", default=None)
#: By the token in their marks.
_RECORDINGS: "weakref.WeakValueDictionary[str, Recording]" = weakref.WeakValueDictionary()
_TOKEN = re.compile(r"zex[0-9a-f]{12}", re.IGNORECASE)
_CHANCE = random.SystemRandom()


def recording_of_text(text: str) -> Optional["Recording"]:
    """The recording whose marks are in a text, or were before somebody changed it."""
    found = _TOKEN.search(text)
    return None if found is None else _RECORDINGS.get(found.group().lower())


def any_recording() -> bool:
    """Whether there are recordings whose marks could be anywhere."""
    return bool(_RECORDINGS)


def holds_marks(serialized: bytes) -> bool:
    """Whether a request that is about to be sent holds the mark of any recording."""
    if b"zeX" not in serialized:
        return False
    return recording_of_text(serialized.decode("utf-8", "replace")) is not None


class Loop:
    """A loop of the script over a list or a stream that is recorded."""

    def __init__(self, source: str, each: str, items: Optional[Expression]) -> None:
        #: What it goes over, as expressions name it, and as `each` does.
        self.source, self.each = source, each
        #: The list, if it is one.
        self.items = items


class _Group:
    def __init__(self, kind: str, when: Optional[str] = None) -> None:
        self.kind, self.when = kind, when
        self.children: List[Union["_Group", Dict[str, Any]]] = []

    def written(self) -> List[Any]:
        out: List[Any] = []
        for child in self.children:
            if not isinstance(child, _Group):
                out.append(child)
                continue
            inner = child.written()
            if inner:
                out.append({**({"when": child.when} if child.when else {}), child.kind: inner})
        return out


class Stream(Recorded):
    """The answer of a recorded call that gives a stream: a loop over it is `each`."""

    def __init__(
        self, expression: Expression, step: Dict[str, Any], group: _Group, item: Any
    ) -> None:
        self._zex, self._step, self._group, self._item = expression, step, group, item
        #: Where the calls stand that take its messages.
        self._takers: Optional[_Group] = None
        self._looped = False

    def __iter__(self) -> Iterator[Any]:
        return self._zex.recording._loop_over_stream(self)

    def __next__(self) -> Any:
        raise RecordingError(
            f"the messages of {name_of(self)} come when the pipeline runs: loop over it"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise RecordingError(
            f"{name_of(self)} is a stream that was recorded, it has no `{name}`: loop over it"
        )


class Recording:
    """A pipeline that is being recorded, or was. `run` starts it."""

    def __init__(self, mesh: "Mesh", name: str, options: Dict[str, Any]) -> None:
        self._mesh, self._name = mesh, name
        self._of_pipeline = _options(
            options, frozenset("retry timeout deadline on_failure".split()), "a pipeline"
        )
        self._parameters: Dict[str, Any] = {}
        self._groups = [_Group("sequence")]
        self._loops: List[Loop] = []
        self._said: List[Dict[str, Any]] = []
        self._ids: Dict[str, Dict[str, Any]] = {}
        self._undoing: Optional[Dict[str, Any]] = None
        self._problem: Optional[RecordingError] = None
        self._entered: Optional["Token[Optional[Recording]]"] = None
        self._over = False
        self._token = f"zeX{_CHANCE.getrandbits(48):012x}"
        self._pattern = re.compile(f"\ue000{self._token}x([0-9]+)\ue001")
        self._texts: List[Mark] = []
        self._numbers: Dict[Union[int, float], Mark] = {}
        #: Marks that were given out as plain numbers and seen in no request yet.
        self._unseen: Dict[Union[int, float], Mark] = {}
        _RECORDINGS[self._token.lower()] = self

    # ── the life of a recording ─────────────────────────────────────────────────────────────

    def __enter__(self) -> "Recording":
        if ACTIVE.get() is not None:
            raise RecordingError(f"`{ACTIVE.get()._name}` is being recorded already")  # type: ignore[union-attr]
        if self._over:
            raise RecordingError(f"`{self._name}` has been recorded; begin another")
        self._entered = ACTIVE.set(self)
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        assert self._entered is not None
        ACTIVE.reset(self._entered)
        self._over = True
        if failed is None:
            self._check_end()

    def _check_end(self) -> None:
        if self._problem is not None:
            raise self._problem
        if self._loops:
            raise _left(self._loops[-1])
        for mark in self._unseen.values():
            raise RecordingError(
                f"`{mark.expression.source}` became a plain number, but no recorded call has it: by range(), "
                "an index or float(), in a bool field, or in a message that was not sent; "
                "in place of a number that Python needs itself, nothing recorded can stand"
            )
        if not self._ids:
            raise RecordingError(
                f"nothing was recorded in `{self._name}`: are the stubs made with mesh.channel() or mesh.intercept()?"
            )

    @property
    def definition(self) -> Dict[str, Any]:
        """The pipeline as a document of spec/pipelines.md."""
        if not self._over:
            raise RecordingError(f"`{self._name}` is still being recorded")
        if self._problem is not None:
            raise self._problem
        steps = self._groups[0].written()
        document: Dict[str, Any] = {"name": self._name, **self._of_pipeline}
        if self._parameters:
            document["parameters"] = self._parameters
        document["steps"] = steps if len(steps) == 1 else [{"sequence": steps}]
        return document

    def __str__(self) -> str:
        return json.dumps(self.definition, indent=2, ensure_ascii=False)

    def save(self, path: Any) -> None:
        """Writes the definition to a file, for `zex pipeline run FILE`."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{self}\n")

    def validate(self, **parameters: Any) -> List[str]:
        """What the scheduler says to it, without starting anything: its steps, in an order."""
        return self._mesh.pipelines.validate(self.definition, **parameters)

    def run(self, **parameters: Any) -> "Run":
        """Has it stored and started. `wait` of what this gives waits for its end."""
        return self._mesh.pipelines.run(self.definition, **parameters)

    # ── what a script says beside its calls ─────────────────────────────────────────────────

    def parameter(self, name: str, default: Any = None, type: Any = None) -> Any:
        """A value that each run is given, by `run(name=value)`; without it the default."""
        kinds = {
            str: "text",
            bool: "boolean",
            int: "integer",
            float: "number",
            list: "list",
            dict: "map",
        }
        kind: Any = type if type is not None else default.__class__
        word = kinds.get(kind.__class__ if isinstance(kind, (list, dict)) else kind)
        if word is None:
            raise RecordingError(
                f"the parameter `{name}` needs a default or a type: str, int, float, bool, [str] …"
            )
        self._parameters[name] = {"type": word, **({} if default is None else {"default": default})}
        kind = (
            {list: [str], dict: {str: str}}.get(kind, kind)
            if not isinstance(kind, (list, dict))
            else kind
        )
        return made(kind, Expression(f"params.{name}", self))

    def ref(self, form: str, *values: Any, type: Any = str) -> Any:
        """An expression in its own words, each `{}` of it a recorded value: `ref("{}|length", reply.users,
        type=int)`. For what Python's operators do not say, and for outputs by name: `ref("users.total")`."""
        if not values:
            return made(type, Expression(form, self))
        return made(type, combined(f"({form})", *values))

    def choose(self, condition: Any, this: Any, that: Any) -> Any:
        """`this if condition else that`, decided when the pipeline runs."""
        if not isinstance(condition, Truth):
            raise RecordingError("choose takes a recorded condition, such as `user.age < 18`")
        kinds = {str if isinstance(one, str) else one.__class__ for one in (this, that)}
        kind: Any = str if kinds == {str} else bool if kinds <= {bool, Truth} else float
        if kind is float and not all(
            isinstance(one, (int, float)) or hasattr(one, "__float__") for one in (this, that)
        ):
            raise RecordingError("choose takes two texts, two numbers or two conditions")
        return made(kind, combined("({} if {} else {})", this, condition, that))

    @property
    def run_id(self) -> Any:
        """The id of the run, in a request."""
        return Text(Expression("run.id", self))

    @property
    def index(self) -> Any:
        """The number of the item, from 0; `enumerate` sees one item only."""
        if not self._loops:
            raise RecordingError(
                "an index is that of an item: it stands in a loop over something recorded"
            )
        return made(int, Expression("index", self, self._loops[-1]))

    def sequence(self) -> Any:
        """`with`: the calls inside follow each other, as they do unless something else is said."""
        return self._group("sequence")

    def concurrence(self) -> Any:
        """`with`: the calls and groups inside run beside each other."""
        return self._group("concurrence")

    def when(self, condition: Any) -> Any:
        """`with`: the calls inside are made only if the condition is true."""
        if not isinstance(condition, Truth):
            raise RecordingError("`when` takes a recorded condition, such as `order.total > 100`")
        if expression_of(condition).loop is not None:
            raise RecordingError(
                f"{name_of(condition)} reads an item: `when` is asked once for all items; choose() decides for each"
            )
        return self._group("sequence", f"{{{{ {expression_of(condition).source} }}}}")

    @contextmanager
    def step(self, id: Optional[str] = None, **options: Any) -> Iterator[None]:
        """`with`: what is said of the calls inside: `id`, `concurrency`, `retry` (attempts, or a map), `timeout`,
        `deadline` (seconds, or "2m"), `on_failure`, `idempotent`."""
        said = _options(options, _OPTIONS, "a step")
        self._said.append({**said, **({} if id is None else {"id": id})})
        try:
            yield
        finally:
            self._said.pop()

    @contextmanager
    def undo(self, reply: Any) -> Iterator[None]:
        """`with`: the call inside takes back the one that gave this reply, when the run fails for good."""
        step = self._ids.get(expression_of(reply).source) if isinstance(reply, Recorded) else None
        if step is None:
            raise RecordingError("undo takes the reply of a recorded call")
        self._undoing = step
        try:
            yield
        finally:
            self._undoing = None

    @contextmanager
    def _group(self, kind: str, when: Optional[str] = None) -> Iterator[None]:
        group = _Group(kind, when)
        self._groups[-1].children.append(group)
        self._groups.append(group)
        try:
            yield
        finally:
            self._groups.pop()

    # ── loops ───────────────────────────────────────────────────────────────────────────────

    def loop_over_list(self, items: Items) -> Iterator[Any]:
        """One item, that stands for all."""
        expression = expression_of(items)
        loop = Loop(expression.source, f"{{{{ {expression.source} }}}}", expression)
        return self._looped(loop, made(items._element, Expression("item", self, loop)))

    def _loop_over_stream(self, stream: Stream) -> Iterator[Any]:
        loop = Loop(stream._step["id"], stream._step["id"], None)
        loop.stream = stream  # type: ignore[attr-defined]
        if not stream._looped and not self._over:
            # It is read where its messages are taken: what comes between would wait for its end.
            stream._looped = True
            stream._group.children.remove(stream._step)
            stream._group = self._groups[-1]
            stream._group.children.append(stream._step)
        return self._looped(loop, made(stream._item, Expression("item", self, loop)))

    def _looped(self, loop: Loop, item: Any) -> Iterator[Any]:
        self._must_live(loop.source)
        self._loops.append(loop)
        try:
            yield item
        except GeneratorExit:
            self._problem = self._problem or _left(loop)
            raise
        if self._loops.pop() is not loop:
            raise RecordingError(
                f"the loop over `{loop.source}` goes on after one that began inside of it"
            )

    # ── calls, from the channel ─────────────────────────────────────────────────────────────

    def call(
        self, path: str, request: Any, timeout: Any, streams: bool, reply: Callable[[bytes], Any]
    ) -> Any:
        """Records a call of a stub; gives what stands for its answer."""
        if self._problem is not None:
            raise self._problem
        service, _, method = path.lstrip("/").rpartition("/")
        call = f"{service}/{method}"
        if len(self._loops) > 1:
            raise RecordingError(
                f"{call} in a loop inside of a loop: a pipeline has one `each` for a call"
            )
        loop = self._loops[-1] if self._loops else None
        said = {name: value for level in self._said for name, value in level.items()}
        wanted = said.pop("id", None)
        if timeout is not None:
            said["timeout"] = _time(timeout, "timeout")
        if self._undoing is not None:
            return self._undo(call, request, streams)
        if streams and loop is not None:
            raise RecordingError(
                f"{call} gives a stream; in a loop, calls that give one message can be recorded"
            )
        content = Inputs(self, loop).of(request)
        if len(self._ids) >= _STEPS_MAX:
            raise RecordingError(
                f"more than {_STEPS_MAX} calls: loop over something recorded, which makes one step, not over range()"
            )
        step: Dict[str, Any] = {"id": self._id(service, method, wanted), "call": call}
        if loop is not None:
            self._taken(loop)
            step["each"] = loop.each
        else:
            said.pop("concurrency", None)
        step.update(said)
        if content is not None:
            step["input"] = content
        group = self._groups[-1]
        group.children.append(step)
        self._ids[step["id"]] = step
        kind = getattr(reply(b""), "DESCRIPTOR", None)
        if kind is None:
            raise RecordingError(
                f"{call}: its stub does not give protobuf messages, so it cannot be recorded"
            )
        expression = Expression(step["id"], self)
        if streams:
            return Stream(expression, step, group, kind)
        return Kept(expression) if loop is not None else Message(expression, kind)

    def _taken(self, loop: Loop) -> None:
        stream: Optional[Stream] = getattr(loop, "stream", None)
        if stream is None:
            return
        group = self._groups[-1]
        if stream._takers is not None and (
            group is not stream._takers or group.kind != "concurrence"
        ):
            raise RecordingError(
                f"all that takes messages of the stream `{loop.source}` runs beside each other: put these calls, "
                "or these loops, into one `with pipeline.concurrence():`"
            )
        stream._takers = group

    def _undo(self, call: str, request: Any, streams: bool) -> Kept:
        step = self._undoing
        assert step is not None  # Its caller has looked.
        if streams or "compensate" in step:
            raise RecordingError(
                f"{call}: one call that gives one message takes `{step['id']}` back"
            )
        content = Inputs(self, None).of(request)
        step["compensate"] = {"call": call, **({} if content is None else {"input": content})}
        return Kept(Expression(f"{step['id']}.compensate", self))

    def _id(self, service: str, method: str, wanted: Optional[str]) -> str:
        name = wanted
        if name is not None and name in self._ids:
            raise RecordingError(
                f'`{name}` is the id of one call: put `with pipeline.step("{name}"):` around one'
            )
        if name is None:
            words = f"{service.rpartition('.')[2]}_{method}"
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()
            name = re.sub(r"[^a-z0-9_]|^[^a-z]+", "", name)[: _ID_MAX_BYTES - 5] or "step"
        fresh, count = name, 1  # One that was asked for and is reserved, the scheduler refuses.
        while wanted is None and (fresh in self._ids or fresh in _RESERVED):
            count += 1
            fresh = f"{name}_{count}"
        return fresh

    # ── marks ───────────────────────────────────────────────────────────────────────────────

    def _must_live(self, source: str) -> None:
        if self._over:
            raise RecordingError(f"`{source}` is of the recording `{self._name}`, which has ended")

    def text_mark(self, mark: Mark) -> str:
        """Text that stands for an expression, to be found again."""
        self._must_live(mark.expression.source)
        self._texts.append(mark)
        return f"\ue000{self._token}x{len(self._texts) - 1}\ue001"

    def whole_mark(self, mark: Mark) -> int:
        """A whole number likewise, by chance: no number of the script is it. If it stands for itself, a
        request must have it in the end."""
        return int(self._number_mark(mark, lambda: _CHANCE.randrange(*_WHOLE_MARKS)))

    def real_mark(self, mark: Mark) -> float:
        """A number with a fraction likewise."""
        return self._number_mark(mark, lambda: _CHANCE.randrange(1 << 23, 1 << 24) * _REAL_SCALE)

    def _number_mark(self, mark: Mark, draw: Callable[[], Any]) -> Any:
        self._must_live(mark.expression.source)
        number = draw()
        while number in self._numbers:
            number = draw()
        self._numbers[number] = mark
        if not mark.up:
            self._unseen[number] = mark
        return number

    def marked(self, number: Any) -> Optional[Mark]:
        """What a number of a request stands for, if it is a mark."""
        self._unseen.pop(number, None)
        return self._numbers.get(number)

    def parts(self, text: str) -> List[Union[str, Mark]]:
        """A text, and the marks in it."""
        out: List[Union[str, Mark]] = []
        for at, part in enumerate(self._pattern.split(text)):
            if at % 2:
                out.append(self._texts[int(part)])
            elif part:
                _check_whole(part)
                out.append(part)
        return out


def _check_whole(text: str) -> None:
    if recording_of_text(text) is not None:
        raise RecordingError(
            "a recorded text was changed after it had become part of another (by a method of str, json.dumps, "
            "a cut), or it belongs to another recording: change it before"
        )


def _left(loop: Loop) -> RecordingError:
    return RecordingError(
        f"the loop over `{loop.source}` was left by `break`, `return` or next(): in a pipeline a loop takes all items"
    )


def _options(given: Mapping[str, Any], known: Any, of: str) -> Dict[str, Any]:
    """Options as the definition has them."""
    out: Dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise RecordingError(f"{of} has no option `{name}`; it has {', '.join(sorted(known))}")
        if name == "retry":
            said = {"attempts": value} if isinstance(value, int) else dict(value)
            value = {
                key: _time(one, key) if key in ("backoff", "max_backoff") else one
                for key, one in said.items()
            }
        elif name in ("timeout", "deadline"):
            value = _time(value, name)
        out[name] = value
    return out


def _time(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise RecordingError(
            f'`{name}` is a number of seconds, or a text such as "2m", not {value!r}'
        )
    return f"{max(1, round(value * 1000))}ms"
