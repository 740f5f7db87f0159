"""Stand-ins for what is known only when a pipeline runs: fields of replies, items, parameters.

    users.List() ─▶ Stream ─ for ─▶ Message `item` ─ .id ─▶ Number `item.id` ─ + 1 ─▶ `(item.id + 1)`
                                                              └▶ AddRequest(user=…): a mark

A stand-in carries an expression of spec/pipelines.md. It goes where the real value would go: into
the constructor of an ordinary protobuf message, an f-string, a sum. What a message can hold is a real
value, so it gets a *mark*: a text, or a number drawn at random, which `inputs` finds again in the
request and replaces by the expression. What no expression says (an `if`, a length, a slice of a text)
raises `RecordingError` on the spot.

Made by `recorder`; marks are read by `inputs`.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from .errors import RecordingError

if TYPE_CHECKING:
    from .recorder import Loop, Recording

#: The longest expression that a pipeline takes (pipeline/src/expression.rs).
EXPRESSION_MAX_BYTES = 1024
#: How deep a message is searched for a field that can hold a mark.
_MARK_DEPTH = 6
#: Messages whose only field is a value: in expressions they are that value.
WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
#: Messages that expressions see in another form than their fields, as protobuf's JSON does.
WELL_KNOWN = WRAPPERS | {
    f"google.protobuf.{name}"
    for name in ("Any", "Timestamp", "Duration", "Struct", "Value", "ListValue", "FieldMask")
}


class Expression(NamedTuple):
    """What stands between `{{` and `}}`, and where it holds."""

    source: str
    recording: "Recording"
    #: The loop whose item it reads, if any.
    loop: Optional["Loop"] = None


class Mark(NamedTuple):
    """What a text or a number that was put into a message stands for."""

    expression: Expression
    #: Not this value, but the message around it; 2: the message around that, and so on.
    up: int = 0
    #: Then all the fields of that message that have such a mark: one less, and somebody changed it.
    fields: FrozenSet[str] = frozenset()


class Recorded:
    """The base of all stand-ins."""

    _zex: Expression

    def __bool__(self) -> bool:
        raise RecordingError(
            f"{name_of(self)} is known only when the pipeline runs, so `if`, `while`, `and`, `or`, "
            "`not` and `in` cannot ask for it: use pipeline.choose(condition, this, that), "
            "`with pipeline.when(condition):`, and & | ~ between conditions"
        )

    def __repr__(self) -> str:
        return f"<recorded {expression_of(self).source}>"

    def __hash__(self) -> int:
        raise _cannot(self, "be a key or an element of a set")

    def __eq__(self, other: object) -> Any:
        return _compare(self, "==", other)

    def __ne__(self, other: object) -> Any:
        return _compare(self, "!=", other)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise _cannot(self, "be copied or pickled")


def expression_of(value: Any) -> Expression:
    """The expression of a stand-in."""
    expression: Expression = object.__getattribute__(value, "_zex")
    return expression


def name_of(value: Any) -> str:
    """A stand-in in an error."""
    return f"`{expression_of(value).source}`"


def _cannot(value: Any, what: str, hint: str = "") -> RecordingError:
    return RecordingError(
        f"{name_of(value)} is known only when the pipeline runs and cannot {what}{hint}"
    )


def _refused(name: str, hint: str = "") -> Any:
    """A method of str, bytes and so on that no expression says."""
    says = hint or "; where an expression can say it: pipeline.ref('{}|FILTER', value)"

    def refuse(self: Any, *_: Any, **__: Any) -> Any:
        raise RecordingError(
            f"{name_of(self)} is known only when the pipeline runs: `{name}` cannot be recorded{says}"
        )

    return refuse


class _NoLength(RecordingError, TypeError):
    """`list()` and `[*…]` ask for a length, and go on without one if that is a TypeError."""


def _no_length(self: Any) -> int:
    raise _NoLength(
        f"{name_of(self)} is known only when the pipeline runs: `len()` cannot be recorded: "
        "use pipeline.ref('{}|length', value, type=int)"
    )


# ── expressions ─────────────────────────────────────────────────────────────────────────────


def combined(form: str, *values: Any) -> Expression:
    """An expression made of values, each in the place of a `{}` of the form."""
    found = [expression for value in values for expression in expressions_in(value)]
    assert found  # At least one of the values is a stand-in.
    recording, loop = found[0].recording, None
    for expression in found:
        if expression.recording is not recording:
            raise RecordingError(f"`{expression.source}` belongs to another recording")
        if expression.loop is not None:
            if loop is not None and loop is not expression.loop:
                raise RecordingError(f"`{expression.source}` is an item of another loop")
            loop = expression.loop
    source = form.format(*(source_of(value, recording) for value in values))
    if len(source.encode()) > EXPRESSION_MAX_BYTES:
        raise RecordingError(
            f"an expression of {len(source.encode())} bytes is too long, {EXPRESSION_MAX_BYTES} are the "
            f"most: {source[:60]}…"
        )
    return Expression(source, recording, loop)


def expressions_in(value: Any) -> List[Expression]:
    """Every expression that a value holds: a stand-in, or a text with marks in it."""
    if isinstance(value, Recorded):
        return [expression_of(value)]
    if isinstance(value, (list, tuple)):
        return [found for one in value for found in expressions_in(one)]
    if isinstance(value, str):
        from .recorder import recording_of_text

        recording = recording_of_text(value)
        if recording is not None:
            parts = recording.parts(value)
            return [part.expression for part in parts if isinstance(part, Mark)]
    return []


def source_of(value: Any, recording: "Recording") -> str:
    """A value as it stands in an expression."""
    if isinstance(value, Recorded):
        return expression_of(value).source
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"({value})" if value < 0 else str(int(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordingError(f"{value} cannot stand in an expression")
        return f"({value!r})" if value < 0 else repr(float(value))
    if isinstance(value, str):
        parts = [
            part.expression.source
            if isinstance(part, Mark)
            else json.dumps(part, ensure_ascii=False)
            for part in recording.parts(value)
        ]
        return parts[0] if len(parts) == 1 else f"({' ~ '.join(parts or [repr('')])})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(source_of(one, recording) for one in value)}]"
    raise RecordingError(f"a {type(value).__name__} cannot stand in an expression")


def _compare(left: Any, operator: str, right: Any) -> Any:
    if right is None:
        test = "is none" if operator == "==" else "is not none"
        return Truth(combined(f"({{}} {test})", left))
    comparable = {Text: str, Number: (int, float), Truth: bool, Choice: (int, str)}.get(type(left))
    if isinstance(left, Choice) and not isinstance(right, Recorded):
        right = left._name(right)
    same = isinstance(right, type(left)) or (comparable and isinstance(right, comparable))
    if not same or (isinstance(right, bool) and not isinstance(left, Truth)):
        raise _cannot(left, f"be compared with a {type(right).__name__}")
    return Truth(combined(f"({{}} {operator} {{}})", left, right))


def _ordered(operator: str) -> Any:
    def compare(self: Any, other: Any) -> Any:
        return _compare(self, operator, other)

    return compare


# ── single values ───────────────────────────────────────────────────────────────────────────


class Truth(Recorded):
    """A bool."""

    def __init__(self, expression: Expression) -> None:
        self._zex = expression

    def __and__(self, other: Any) -> Any:
        return self._joined("({} and {})", self, other)

    def __rand__(self, other: Any) -> Any:
        return self._joined("({} and {})", other, self)

    def __or__(self, other: Any) -> Any:
        return self._joined("({} or {})", self, other)

    def __ror__(self, other: Any) -> Any:
        return self._joined("({} or {})", other, self)

    def __invert__(self) -> "Truth":
        return Truth(combined("(not {})", self))

    @staticmethod
    def _joined(form: str, left: Any, right: Any) -> Any:
        if all(isinstance(one, (Truth, bool)) for one in (left, right)):
            return Truth(combined(form, left, right))
        return NotImplemented

    def __index__(self) -> int:
        # A message can hold true and false, and neither can be told from the other's mark.
        raise RecordingError(
            f"{name_of(self)} is true or false only when the pipeline runs, and a field of a message "
            "cannot hold that: give the request as a map, as in stub.Method({'admin': user.admin})"
        )

    __str__ = _refused("str()", ": use pipeline.choose(condition, 'this', 'that')")
    __format__ = _refused("format", ": use pipeline.choose(condition, 'this', 'that')")


class _Marked(Recorded):
    """What a message holds as a number."""

    def __init__(self, expression: Expression) -> None:
        self._zex = expression

    def __index__(self) -> int:
        return self._zex.recording.whole_mark(Mark(self._zex))

    __int__ = _refused("int()")
    __round__ = _refused("round()", ": use pipeline.ref('{}|round', value)")
    __trunc__ = __floor__ = __ceil__ = __int__


class Choice(_Marked):
    """The value of an enum: a number to Python, a name in expressions."""

    def __init__(self, expression: Expression, names: EnumDescriptor) -> None:
        super().__init__(expression)
        self._names = names

    def _name(self, value: Any) -> Any:
        if isinstance(value, int) and value in self._names.values_by_number:
            return self._names.values_by_number[value].name
        if isinstance(value, str) and value in self._names.values_by_name:
            return value
        known = ", ".join(self._names.values_by_name)
        raise RecordingError(f"{self._names.full_name} has no value {value!r}; it has {known}")

    __str__ = _refused("str()", ": its name is pipeline.ref('{}', value, type=str)")
    __format__ = __str__
    __float__ = _refused("float()")


class Number(_Marked):
    """A whole number, or one with a fraction."""

    def __float__(self) -> float:
        return self._zex.recording.real_mark(Mark(self._zex))

    def __str__(self) -> str:
        return Text(combined("({}|string)", self))

    def __format__(self, form: str) -> str:
        if form:
            raise _cannot(
                self, f"be formatted by {form!r}", ": use pipeline.ref('{}|round(2)', value)"
            )
        return str.__str__(Text(self._zex))

    def __neg__(self) -> "Number":
        return Number(combined("(-{})", self))

    def __pos__(self) -> "Number":
        return self

    def __abs__(self) -> "Number":
        return Number(combined("({}|abs)", self))

    __lt__, __le__ = _ordered("<"), _ordered("<=")
    __gt__, __ge__ = _ordered(">"), _ordered(">=")


def _arithmetic() -> None:
    def calculated(form: str, left: Any, right: Any) -> Any:
        for one in (left, right):
            if isinstance(one, bool) or not isinstance(one, (Number, int, float)):
                return NotImplemented
        return Number(combined(form, left, right))

    operators = {
        "add": "+",
        "sub": "-",
        "mul": "*",
        "truediv": "/",
        "floordiv": "//",
        "mod": "%",
        "pow": "**",
    }
    for name, operator in operators.items():
        form = f"({{}} {operator} {{}})"
        setattr(Number, f"__{name}__", lambda self, other, f=form: calculated(f, self, other))
        setattr(Number, f"__r{name}__", lambda self, other, f=form: calculated(f, other, self))


_arithmetic()


class Text(str, Recorded):
    """A text: its characters are a mark."""

    def __new__(cls, expression: Expression) -> "Text":
        text = str.__new__(cls, expression.recording.text_mark(Mark(expression)))
        text._zex = expression
        return text

    def __str__(self) -> str:
        return self

    def __format__(self, form: str) -> str:
        if form:
            raise _cannot(self, f"be formatted by {form!r}")
        return str.__str__(self)

    def __add__(self, other: Any) -> Any:
        return (
            Text(combined("({} ~ {})", self, other)) if isinstance(other, str) else NotImplemented
        )

    def __radd__(self, other: Any) -> Any:
        return (
            Text(combined("({} ~ {})", other, self)) if isinstance(other, str) else NotImplemented
        )

    def upper(self) -> Any:
        return Text(combined("({}|upper)", self))

    def lower(self) -> Any:
        return Text(combined("({}|lower)", self))

    def strip(self, characters: Optional[str] = None) -> Any:
        if characters is not None:
            raise _cannot(self, "be stripped of certain characters")
        return Text(combined("({}|trim)", self))

    def replace(self, old: str, new: str, count: Any = -1) -> Any:
        if count != -1:
            raise _cannot(self, "be replaced a certain number of times")
        return Text(combined("({}|replace({}, {}))", self, old, new))

    def startswith(self, start: Any, *_: Any) -> Any:
        return self._begins_or_ends("starting", start, _)

    def endswith(self, end: Any, *_: Any) -> Any:
        return self._begins_or_ends("ending", end, _)

    def _begins_or_ends(self, how: str, part: Any, between: Any) -> Any:
        if between or not isinstance(part, str):
            raise _cannot(self, f"be asked for {how} in this way")
        return Truth(combined(f"({{}} is {how}with({{}}))", self, part))

    # Those of Recorded, in front of those of str.
    __bool__, __repr__, __hash__ = Recorded.__bool__, Recorded.__repr__, Recorded.__hash__
    __eq__, __ne__ = Recorded.__eq__, Recorded.__ne__
    __reduce_ex__ = Recorded.__reduce_ex__
    __lt__, __le__ = _ordered("<"), _ordered("<=")
    __gt__, __ge__ = _ordered(">"), _ordered(">=")


class Bytes(bytes, Recorded):
    """Bytes: those here are a mark."""

    def __new__(cls, expression: Expression) -> "Bytes":
        made = bytes.__new__(cls, expression.recording.text_mark(Mark(expression)).encode())
        made._zex = expression
        return made

    __bool__, __repr__, __hash__ = Recorded.__bool__, Recorded.__repr__, Recorded.__hash__
    __str__ = Recorded.__repr__
    __eq__, __ne__ = Recorded.__eq__, Recorded.__ne__
    __reduce_ex__ = Recorded.__reduce_ex__


def _refuse_the_rest() -> None:
    """What str and bytes can do and no expression says: it would work on the mark."""
    operators = {"__contains__": "in", "__getitem__": "[…]", "__iter__": "for", "__len__": "len()",
                 "__mod__": "%", "__rmod__": "%", "__mul__": "*", "__rmul__": "*", "__add__": "+",
                 "__radd__": "+", "__format__": "format", "__bytes__": "bytes()",
                 "__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">="}  # fmt: skip
    for made, base in ((Text, str), (Bytes, bytes)):
        for name in dir(base):
            if (name in operators or not name.startswith("_")) and name not in vars(made):
                setattr(made, name, _refused(operators.get(name, f".{name}()")))


_refuse_the_rest()


# ── values with parts ───────────────────────────────────────────────────────────────────────


class Message(dict, Recorded):  # type: ignore[type-arg]
    """A message: its fields are stand-ins, by attribute.

    It is a dict, so that a constructor takes it for a field: what is in the dict are fields with
    marks that stand for the whole message.
    """

    def __init__(self, expression: Expression, descriptor: Descriptor) -> None:
        object.__setattr__(self, "_zex", expression)
        object.__setattr__(self, "_descriptor", descriptor)
        dict.__init__(self, _marked_fields(descriptor, expression, 1, frozenset()) or {
            f"{descriptor.name} has no field that can hold a mark: give the request as a map, as in "
            "stub.Method({'field': value});": None
        })  # fmt: skip

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        descriptor: Descriptor = object.__getattribute__(self, "_descriptor")
        expression = expression_of(self)
        field = descriptor.fields_by_name.get(name)
        if field is not None and descriptor.full_name in WELL_KNOWN - WRAPPERS:
            raise _cannot(self, f"be asked for `{name}`",
                          f": in a pipeline a {descriptor.name} has the form that protobuf's JSON gives it")  # fmt: skip
        if field is not None:
            below = "" if descriptor.full_name in WRAPPERS else f".{name}"
            return of_field(field, expression._replace(source=f"{expression.source}{below}"))
        if name == "HasField":
            return lambda field: Truth(combined("({} is not none)", getattr(self, field)))
        if name in ("keys", "_descriptor", "_zex"):  # `keys`: for `**message`.
            return object.__getattribute__(self, name)
        if hasattr(_AnyMessage, name):
            raise _cannot(self, f"be asked for `{name}`")
        import difflib

        near = difflib.get_close_matches(name, descriptor.fields_by_name, 1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise AttributeError(f"{descriptor.full_name} has no field `{name}`{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise _cannot(self, "be changed", f": set `{name}` in a message of your own")

    __delattr__ = __setattr__  # type: ignore[assignment]
    __bool__, __repr__, __hash__ = Recorded.__bool__, Recorded.__repr__, Recorded.__hash__
    __str__ = _refused("str()")
    __eq__ = __ne__ = _refused("==", ": compare its fields")
    __iter__ = _refused("for")
    __len__ = _refused("len()")
    __contains__ = _refused("in", ": use message.HasField('field')")
    __getitem__ = _refused("[…]", ": its fields are attributes")
    __setitem__ = __delitem__ = __ior__ = _refused("a change")
    __reduce_ex__ = Recorded.__reduce_ex__


class _AnyMessage:
    """What generated messages can do besides having fields."""

    ByteSize = Clear = ClearField = CopyFrom = FromString = IsInitialized = ListFields = None
    MergeFrom = MergeFromString = ParseFromString = SerializeToString = WhichOneof = None
    SerializePartialToString = SetInParent = ClearExtension = HasExtension = DESCRIPTOR = None


def _marked_fields(
    descriptor: Descriptor, expression: Expression, up: int, above: Any
) -> Optional[Dict[str, Any]]:
    """The fields of a message that can hold a mark, each with one, or those of a message in it."""
    recording, types = expression.recording, FieldDescriptor
    makers: Dict[int, Any] = {
        types.CPPTYPE_STRING: recording.text_mark,
        types.CPPTYPE_DOUBLE: recording.real_mark,
        types.CPPTYPE_FLOAT: recording.real_mark,
        **dict.fromkeys(_WHOLE_TYPES, recording.whole_mark),
    }
    able = [
        field for field in descriptor.fields if field.cpp_type in makers and not _is_choice(field)
    ]
    marked: Dict[str, Any] = {}
    # A single mark could be written over, and nobody would notice.
    for field in descriptor.fields if len(able) < 2 else ():
        inner = field.message_type
        if inner is None or is_map(field) or inner.full_name in above or up >= _MARK_DEPTH:
            continue
        found = _marked_fields(inner, expression, up + 1, above | {descriptor.full_name})
        if found is not None and not _is_choice(field):
            marked[field.name] = [found] if is_repeated(field) else found
            break
    mark = Mark(expression, up, frozenset([*marked, *(field.name for field in able)]))
    for field in able:
        made = makers[field.cpp_type](mark)
        if field.type == types.TYPE_BYTES:
            made = made.encode()
        marked[field.name] = [made] if is_repeated(field) else made
    return marked or None


def _is_choice(field: FieldDescriptor) -> bool:
    """Whether it is one of several of which a message holds one: the others would drive it out."""
    return field.containing_oneof is not None and len(field.containing_oneof.fields) > 1


class Items(Recorded):
    """A list: a loop over it is `each`."""

    def __init__(self, expression: Expression, element: Any) -> None:
        self._zex, self._element = expression, element

    def __iter__(self) -> Iterator[Any]:
        return self._zex.recording.loop_over_list(self)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            bounds = [
                "" if end is None else source_of(end, self._zex.recording)
                for end in (at.start, at.stop)
            ]
            if at.step is not None:
                raise _cannot(self, "be cut in steps")
            return Items(combined(f"{{}}[{':'.join(bounds)}]", self), self._element)
        if isinstance(at, bool) or not isinstance(at, (int, Number)):
            raise _cannot(self, f"be asked for [{at!r}]")
        return made(self._element, combined("{}[{}]", self, at))

    __len__ = _no_length
    __contains__ = _refused("in")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _cannot(
            self, f"be asked for `{name}`", ": a loop over it, or [0], gives its elements"
        )


class Entries(Recorded):
    """A map: one entry at a time, by its key."""

    def __init__(self, expression: Expression, element: Any) -> None:
        self._zex, self._element = expression, element

    def __getitem__(self, key: Any) -> Any:
        return made(self._element, combined("{}[{}]", self, key))

    __iter__ = _refused("for")
    __len__ = _no_length
    __contains__ = _refused("in")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _cannot(
            self, f"be asked for `{name}`", ": give the request as a map to pass it on whole"
        )


class Kept(Recorded):
    """The reply of a call in a loop: a pipeline does not keep those together."""

    def __init__(self, expression: Expression) -> None:
        object.__setattr__(self, "_zex", expression)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise unkept(self)


def unkept(value: Any) -> RecordingError:
    """What to say of the reply of a call in a loop."""
    step = expression_of(value).source
    return RecordingError(
        f"`{step}` is called once for every item: its replies are recorded, but no later call can read them"
    )


# ── which stand-in for what ─────────────────────────────────────────────────────────────────

_WHOLE_TYPES = (
    FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64,
)  # fmt: skip


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is a list or a map."""
    # `label` is going away; older versions have nothing else.
    repeated = getattr(field, "is_repeated", None)
    return field.label == field.LABEL_REPEATED if repeated is None else bool(repeated)


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def of_field(field: FieldDescriptor, expression: Expression) -> Any:
    """The stand-in for a field of a message."""
    if is_map(field):
        return Entries(expression, _kind(field.message_type.fields_by_name["value"]))
    if is_repeated(field):
        return Items(expression, _kind(field))
    return made(_kind(field), expression)


def _kind(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return field.message_type
    if field.enum_type is not None:
        return field.enum_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes
    return {
        FieldDescriptor.CPPTYPE_STRING: str,
        FieldDescriptor.CPPTYPE_BOOL: bool,
        FieldDescriptor.CPPTYPE_FLOAT: float,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
    }.get(field.cpp_type, int)


def made(kind: Any, expression: Expression) -> Any:
    """The stand-in of a kind: str, int, float, bool, bytes, a class or a descriptor of a message, a
    descriptor of an enum, `[kind]` for a list, `{str: kind}` for a map."""
    kind = getattr(kind, "DESCRIPTOR", kind)
    if isinstance(kind, Descriptor):
        return Message(expression, kind)
    if isinstance(kind, EnumDescriptor):
        return Choice(expression, kind)
    if isinstance(kind, list) and len(kind) == 1:
        return Items(expression, kind[0])
    if isinstance(kind, dict) and len(kind) == 1:
        return Entries(expression, next(iter(kind.values())))
    simple: Tuple[Tuple[Any, Any], ...] = (
        (str, Text), (bool, Truth), (int, Number), (float, Number), (bytes, Bytes),
    )  # fmt: skip
    for known, stand_in in simple:
        if kind is known:
            return stand_in(expression)
    raise RecordingError(
        f"{kind!r} is no type of a recorded value: str, int, float, bool, bytes, a message, [type] or {{str: type}}"
    )
