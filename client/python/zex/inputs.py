"""A request with marks in it, as the `input` of a step (spec/pipelines.md).

    AddRequest(user=1493172224, group="team-⟦17⟧") ─▶ {"user": "{{ item.id }}", "group": "team-{{ item.plan }}"}

A request is a protobuf message, a map of its fields (which may hold what a message cannot, a recorded
bool for example), or a recorded message, which then passes untouched.

Called by `recorder` for each call that is recorded.
"""

from __future__ import annotations

import base64
import math
import re
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Protobuf
from google.protobuf.unknown_fields import UnknownFieldSet

from .errors import RecordingError
from .recorded import (
    WELL_KNOWN,
    WRAPPERS,
    Expression,
    Kept,
    Mark,
    Recorded,
    expression_of,
    is_map,
    is_repeated,
    unkept,
)  # fmt: skip

if TYPE_CHECKING:
    from .recorder import Loop, Recording

#: A field of an item, or one of that.
_FIELD_OF_ITEM = re.compile(r"item((?:\.[A-Za-z_][A-Za-z0-9_]*)+)\Z")


class _Found(NamedTuple):
    """A mark that was found: it is the value here, or that of a message so many further out."""

    expression: Expression
    up: int
    fields: FrozenSet[str] = frozenset()


class Inputs:
    """The requests of one recording, in one loop or in none."""

    def __init__(self, recording: "Recording", loop: Optional["Loop"]) -> None:
        self._recording, self._loop = recording, loop

    def of(self, request: Any) -> Any:
        """The input of a step; None if the message is empty."""
        if isinstance(request, (Protobuf, Mapping, Recorded)):
            return self._placed(self._value(request, "the request")) or None
        kind = type(request).__name__
        raise RecordingError(
            f"a recorded call takes a protobuf message, a map of its fields or a recorded message, not {kind}"
        )

    def _placed(self, content: Any) -> Any:
        """What stands in the definition, once it is known that a mark belongs just here."""
        if not isinstance(content, _Found):
            return content
        source, loop = content.expression.source, content.expression.loop
        if content.expression.recording is not self._recording:
            raise RecordingError(f"`{source}` belongs to another recording")
        if loop is not None and loop is not self._loop:
            raise RecordingError(
                f"`{source}` is an item of the loop over `{loop.source}`, which has ended: "
                "make the call inside of that loop"
            )
        return f"{{{{ {source} }}}}"

    # ── plain values, with stand-ins ────────────────────────────────────────────────────────

    def _value(self, value: Any, where: str) -> Any:
        if isinstance(value, Kept):
            raise unkept(value)
        if isinstance(value, Recorded):
            return _Found(expression_of(value), 0)
        if isinstance(value, Protobuf):
            return self._message(value, where)
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, (bytes, bytearray)):
            return self._bytes(bytes(value), where)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (int, float)):
            return self._number(value, where)
        if isinstance(value, Mapping):
            return {
                str(key): self._placed(self._value(one, f"{where}.{key}"))
                for key, one in value.items()
            }
        if isinstance(value, (list, tuple)):
            return self._list([self._value(one, where) for one in value], where)
        raise RecordingError(f"{where}: a {type(value).__name__} cannot be recorded")

    def _text(self, text: str, where: str) -> Any:
        parts = self._recording.parts(text)
        if len(parts) == 1 and isinstance(parts[0], Mark):
            return _Found(*parts[0])
        out: List[str] = []
        for at, part in enumerate(parts):
            if isinstance(part, Mark):
                if part.up:
                    raise RecordingError(f"{where}: a recorded message cannot stand in a text")
                out.append(self._placed(_Found(*part)))
            else:
                # A brace of the text's own must not begin an expression, nor one at its end do so
                # together with those of the next part.
                last = at + 1 == len(parts)
                out.append(re.sub(r"\{(?=[{%])" + ("" if last else r"|\{\Z"), '{{ "{" }}', part))
        return "".join(out)

    def _bytes(self, value: bytes, where: str) -> Any:
        parts = self._recording.parts(value.decode("utf-8", "replace"))
        marks = [part for part in parts if isinstance(part, Mark)]
        if marks and len(parts) > 1:
            raise RecordingError(f"{where}: recorded bytes cannot be put together with others")
        return _Found(*marks[0]) if marks else base64.b64encode(value).decode()

    def _number(self, value: Any, where: str) -> Any:
        mark = self._recording.marked(value)
        if mark is not None:
            return _Found(*mark)
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordingError(f"{where}: {value} cannot be recorded")
        return value

    def _list(self, elements: List[Any], where: str) -> Any:
        """A list of values. If a constructor or a comprehension went through a recorded list, it saw
        one element of it: that stands for all."""
        if len(elements) == 1 and isinstance(elements[0], _Found):
            expression, up = elements[0][:2]
            if up:
                return elements[0]
            if expression.loop is not None and expression.loop is not self._loop:
                return self._gathered(expression, where)
        return [self._placed(one) for one in elements]

    def _gathered(self, expression: Expression, where: str) -> _Found:
        source, loop = expression.source, expression.loop
        assert loop is not None  # Its caller has looked.
        if loop.items is None:
            raise RecordingError(
                f"{where}: the messages of the stream `{loop.source}` cannot be gathered into a list: "
                "loop over it, with the call inside"
            )
        field = _FIELD_OF_ITEM.match(source)
        if source == "item":
            source = loop.items.source
        elif field:
            source = f'({loop.items.source}|map(attribute="{field.group(1)[1:]}")|list)'
        else:
            raise RecordingError(
                f"{where}: a list of `{source}` cannot be said, only one of the elements of "
                f"`{loop.source}` or of a field of each"
            )
        return _Found(loop.items._replace(source=source), 0)

    # ── messages ────────────────────────────────────────────────────────────────────────────

    def _message(self, message: Any, where: str) -> Any:
        """A map of its fields, or what else stands for it in protobuf's JSON, or a mark."""
        name, fields = message.DESCRIPTOR.full_name, message.ListFields()
        if len(UnknownFieldSet(message)):
            raise RecordingError(f"{where}: it has fields that its own type does not know")
        made: Dict[str, Any] = {}
        for field, value in fields:
            if field.is_extension:
                raise RecordingError(f"{where}: the extension {field.full_name} cannot be recorded")
            made[field.name] = self._field(field, value, f"{where}.{field.name}")
        whole = self._whole(made, where)
        if whole is not None:
            return whole
        if name in WRAPPERS:
            if made:
                return made["value"]
            return "" if isinstance(message.value, bytes) else message.value
        if name in WELL_KNOWN:
            return self._well_known(message, made, where)
        return {name: self._placed(content) for name, content in made.items()}

    @staticmethod
    def _whole(made: Dict[str, Any], where: str) -> Optional[_Found]:
        """The recorded message that the marks in a message stand for, if nobody has changed it."""
        whole = [content for content in made.values() if isinstance(content, _Found) and content.up]
        if not whole:
            return None
        first = whole[0]
        marked = next(
            (one.fields for one in whole if one.fields), frozenset(made) if len(made) == 1 else None
        )
        if (
            len(whole) < len(made)
            or any(one[:2] != first[:2] for one in whole)
            or marked != set(made)
        ):
            raise RecordingError(
                f"{where}: it is the recorded `{first.expression.source}` and cannot be changed: pass it on "
                "as it is, or fill in the fields of a message of your own"
            )
        return _Found(first.expression, first.up - 1)

    def _well_known(self, message: Any, made: Dict[str, Any], where: str) -> Any:
        name = message.DESCRIPTOR.name
        open_form = name in ("Struct", "Value", "ListValue")
        if not open_form and any(isinstance(content, _Found) for content in made.values()):
            raise RecordingError(
                f"{where}: a {name} made of recorded parts cannot be said; pass a whole one on"
            )
        try:
            plain = json_format.MessageToDict(message)
        except Exception as error:
            raise RecordingError(f"{where}: {error}") from None
        return self._value(plain, where) if open_form else plain

    def _field(self, field: FieldDescriptor, value: Any, where: str) -> Any:
        if is_map(field):
            kind = field.message_type.fields_by_name["value"]
            return {
                self._key(key, where): self._placed(
                    self._single(kind, value[key], f"{where}[{key!r}]")
                )
                for key in value
            }
        if is_repeated(field):
            elements = [self._single(field, one, f"{where}[{at}]") for at, one in enumerate(value)]
            return self._list(elements, where)
        return self._single(field, value, where)

    def _key(self, key: Any, where: str) -> str:
        if isinstance(key, str):
            marked = any(isinstance(part, Mark) for part in self._recording.parts(key))
        else:
            marked = not isinstance(key, bool) and self._recording.marked(key) is not None
        if marked:
            raise RecordingError(f"{where}: a recorded value cannot be the key of a map")
        return str(key).lower() if isinstance(key, bool) else str(key)

    def _single(self, field: FieldDescriptor, value: Any, where: str) -> Any:
        if field.message_type is not None:
            return self._message(value, where)
        if field.enum_type is not None and self._recording.marked(value) is None:
            known = field.enum_type.values_by_number.get(value)
            return value if known is None else known.name
        return self._value(value, where)
