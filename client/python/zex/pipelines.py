"""Pipelines that are written: they are run, looked at and waited for through `zex.Pipelines`.

    Pipelines.run(definition) ─ Run ─▶ scheduler        Run.wait ─ Watch from the last offset ─▶ Outcome

Needs the package protobuf. Used by `mesh`, whose recordings end here.
"""

from __future__ import annotations

import json
import time
from typing import Any, Iterator, List, Mapping, Optional, Union

from .errors import Code, Error, RunFailed
from .reflection import Reflection

SERVICE = "zex.Pipelines"
#: How long the scheduler may take to answer one call.
_CALL_S = 30.0
#: How long one stream of events lasts at most; it is opened again where it ended.
_WATCH_S = 3600.0
#: A pause before events are asked for again after the stream broke.
_AGAIN_S = 0.2
#: States in which a run has ended; the second set, badly.
_WELL = frozenset(("succeeded", "warning"))
_BADLY = frozenset(("failed", "cancelled", "expired"))


class Pipelines:
    """What the schedulers of a mesh run."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    def run(self, definition: Union[str, Mapping[str, Any]], **parameters: Any) -> "Run":
        """Stores a pipeline and starts it. `definition` is YAML, JSON, or the same as a map."""
        reply = self._call("Run", _request(definition, parameters), wait=True)
        return Run(self, reply.run_id, reply.name)

    def validate(self, definition: Union[str, Mapping[str, Any]], **parameters: Any) -> List[str]:
        """The steps of a pipeline in an order in which they can run; raises `Error` if it does not fit."""
        return list(self._call("Validate", _request(definition, parameters), wait=True).steps)

    def get(self, run_id: str) -> "Run":
        """A run by its id."""
        return Run(self, run_id, self._call("Show", {"run_id": run_id}).name)

    def _call(self, method: str, request: Mapping[str, Any], **options: Any) -> Any:
        return self._reflection.call(SERVICE, method, request, _CALL_S, **options)


def _request(
    definition: Union[str, Mapping[str, Any]], parameters: Mapping[str, Any]
) -> Mapping[str, Any]:
    text = definition if isinstance(definition, str) else json.dumps(definition, ensure_ascii=False)
    return {"definition": text, "parameters_json": json.dumps(parameters) if parameters else ""}


class Run:
    """A run of a pipeline."""

    def __init__(self, pipelines: Pipelines, run_id: str, name: str) -> None:
        self._pipelines = pipelines
        self.id, self.name = run_id, name

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.name}>"

    def show(self, outputs: bool = False) -> Any:
        """The run with its steps, as `zex.RunView` has it."""
        return self._pipelines._call("Show", {"run_id": self.id, "outputs": outputs})

    def watch(self, after: int = 0, timeout_s: float = _WATCH_S) -> Iterator[Any]:
        """What happened after an offset, then what happens, until the run ends."""
        request = {"run_id": self.id, "after_offset": after}
        return self._pipelines._reflection.stream(SERVICE, "Watch", request, timeout_s)

    def wait(self, timeout_s: Optional[float] = None) -> "Outcome":
        """Waits until the run has ended; raises `RunFailed` if it ended badly, and `Error` with
        DEADLINE_EXCEEDED if it has not after `timeout_s`. A run that pauses is waited for."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        offset = 0
        while True:
            left_s = _WATCH_S if deadline is None else min(_WATCH_S, deadline - time.monotonic())
            if left_s <= 0:
                raise Error(
                    Code.DEADLINE_EXCEEDED,
                    f"{self.name} {self.id} has not ended after {timeout_s:g} s",
                )
            try:
                for event in self.watch(offset, left_s):
                    offset = max(offset, event.offset)
            except Error as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
                if deadline is None or deadline - time.monotonic() > _AGAIN_S:
                    time.sleep(_AGAIN_S)
                continue
            outcome = Outcome(self.show())
            if outcome.state in _BADLY:
                raise RunFailed(outcome)
            if outcome.state in _WELL:
                return outcome

    def cancel(self, reason: str = "", force: bool = False) -> Any:
        """Cancels the run and the calls that it has in flight."""
        return self._pipelines._call(
            "Cancel", {"run_id": self.id, "reason": reason, "force": force}
        )


class Outcome:
    """How a run ended. As text: one line."""

    def __init__(self, view: Any) -> None:
        #: As `zex.RunView` has it.
        self.view = view
        names = view.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
        #: `succeeded`, `warning`, `failed`, `cancelled`, `expired`.
        self.state = names[view.state].name.replace("RUN_STATE_", "").lower()

    def __str__(self) -> str:
        steps = ", ".join(
            f"{step.id} {max(step.done, step.items_read)}" for step in self.view.steps
        )
        took_s = (self.view.ended_ms - self.view.created_ms) / 1_000
        why = f": {self.view.reason}" if self.view.reason else ""
        return f"{self.view.name} {self.view.run_id} {self.state} in {took_s:.1f} s{why} ({steps})"
