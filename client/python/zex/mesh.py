"""The mesh for scripts: a client, channels for ordinary gRPC stubs, pipelines and their recording.

    mesh = zex.connect()
      ├─ client, reflection          calls by name, over ZeroMQ
      ├─ channel(), intercept(…)     for stubs: a call goes to the gateway, or into the recording
      ├─ record(name)                `with`: calls of those stubs are recorded
      └─ pipelines                   run, show, watch

Needs the packages grpcio and protobuf.
"""

from __future__ import annotations

import os
from typing import Any, List, Optional

import grpc

from .client import Client
from .errors import RecordingError
from .loop import Endpoints
from .pipelines import Pipelines
from .recorded import Recorded
from .recorder import ACTIVE, Recording, any_recording, holds_marks
from .reflection import Reflection


#: The gateway's port above the first one of a mesh's ports in a row.
_GATEWAY_ABOVE = 6


def connect(in_pipes: Optional[Endpoints] = None, gateway: Optional[str] = None) -> "Mesh":
    """The mesh at these in pipes and this gateway (`host:port`).

    Else those of the environment, as the programs of the mesh have them: ZEX_IN_PIPE, or
    ZEX_IN_PIPE_HOST and ZEX_IN_PIPE_PORT; ZEX_GATEWAY_HOST and ZEX_GATEWAY_PORT; or both ports by
    ZEX_PORT_BASE. Else those of `zex up` on this machine.
    """
    environment = dict(os.environ)
    base = environment.get("ZEX_PORT_BASE", "")
    if base.isdecimal() and base != "0":
        environment["ZEX_IN_PIPE_PORT"] = base
        environment["ZEX_GATEWAY_PORT"] = str(int(base) + _GATEWAY_ABOVE)
    variable = environment.get
    if in_pipes is None:
        hosts, port = (
            variable("ZEX_IN_PIPE_HOST", "127.0.0.1"),
            variable("ZEX_IN_PIPE_PORT", "9000"),
        )
        pipes = ",".join(f"tcp://{host}:{port}" for host in hosts.split(","))
        in_pipes = variable("ZEX_IN_PIPE", pipes)
    if gateway is None:
        gateway = (
            f"{variable('ZEX_GATEWAY_HOST', '127.0.0.1')}:{variable('ZEX_GATEWAY_PORT', '8080')}"
        )
    return Mesh(in_pipes, gateway)


class Mesh:
    """A mesh, with a client of it. Close it, or use `with`."""

    def __init__(self, in_pipes: Endpoints, gateway: str) -> None:
        #: Calls by name and with bytes.
        self.client = Client(in_pipes)
        #: Calls by name and with messages.
        self.reflection = Reflection(self.client)
        #: Pipelines that are written, run and looked at.
        self.pipelines = Pipelines(self.reflection)
        self._gateway = gateway
        self._channels: List[grpc.Channel] = []

    def channel(self) -> grpc.Channel:
        """A channel to the gateway, for stubs."""
        channel = self.intercept(grpc.insecure_channel(self._gateway))
        self._channels.append(channel)
        return channel

    def intercept(self, channel: grpc.Channel) -> grpc.Channel:
        """A channel whose calls are recorded while a recording is under way, and else go to this one."""
        if not isinstance(channel, grpc.Channel):
            raise TypeError(
                f"a grpc.Channel is wanted, not {type(channel).__name__}; grpc.aio is not recorded"
            )
        return _Channel(channel, self)

    def record(self, name: str, **options: Any) -> Recording:
        """`with mesh.record("spread") as pipeline:` calls of stubs are recorded, not made.

        `options` are those of the pipeline: `retry` (attempts, or a map), `timeout`, `deadline`, `on_failure`.
        What other threads call meanwhile is not recorded.
        """
        return Recording(self, name, options)

    def close(self) -> None:
        """Ends what waits, and the connections."""
        for channel in self._channels:
            channel.close()
        self.client.close()

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Channel(grpc.Channel):  # type: ignore[misc]
    """A channel in front of another."""

    def __init__(self, inner: grpc.Channel, mesh: Mesh) -> None:
        self._inner, self._mesh = inner, mesh

    def _method(
        self, kind: str, path: str, serialize: Any, deserialize: Any, more: Any, options: Any
    ) -> "_Method":
        # What else there is, is between the stubs and grpcio, and differs between its versions.
        call = getattr(self._inner, kind)(path, serialize, deserialize, *more, **options)
        return _Method(kind, path, call, serialize, deserialize, self._mesh)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        codec = (request_serializer, response_deserializer)
        return self._method("unary_unary", method, *codec, more, options)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        codec = (request_serializer, response_deserializer)
        return self._method("unary_stream", method, *codec, more, options)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        codec = (request_serializer, response_deserializer)
        return self._method("stream_unary", method, *codec, more, options)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        codec = (request_serializer, response_deserializer)
        return self._method("stream_stream", method, *codec, more, options)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> "_Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Method:
    """One method of a stub: `stub.Method(request)`, and its other forms."""

    def __init__(
        self, kind: str, path: str, call: Any, serialize: Any, deserialize: Any, mesh: Mesh
    ) -> None:
        self._kind, self._path, self._call = kind, path, call
        self._serialize, self._deserialize, self._mesh = serialize, deserialize, mesh

    def _recording(self) -> Optional[Recording]:
        recording = ACTIVE.get()
        return recording if recording is not None and recording._mesh is self._mesh else None

    def _record(self, recording: Recording, request: Any, timeout: Any = None, metadata: Any = None,
                credentials: Any = None, wait_for_ready: Any = None, compression: Any = None) -> Any:  # fmt: skip
        if self._kind.startswith("stream_"):
            raise RecordingError(
                f"{self._path[1:]} takes a stream of requests; calls that take one can be recorded"
            )
        if metadata or credentials:
            raise RecordingError(
                f"{self._path[1:]}: metadata and credentials of a call cannot be recorded"
            )
        reply = self._deserialize or (lambda serialized: serialized)
        return recording.call(self._path, request, timeout, self._kind == "unary_stream", reply)

    def __call__(self, request: Any, *arguments: Any, **options: Any) -> Any:
        recording = self._recording()
        if recording is None:
            self._check(request)
            return self._call(request, *arguments, **options)
        return self._record(recording, request, *arguments, **options)

    def _check(self, request: Any) -> None:
        """No mark of a recording gets out to a service."""
        if not any_recording() or self._kind.startswith("stream_"):
            return
        if isinstance(request, Recorded) or holds_marks(
            self._serialize(request) if self._serialize else request
        ):
            raise RecordingError(
                f"{self._path[1:]}: the request holds a recorded value, but this call is not recorded"
            )

    def with_call(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """The reply, and the call; of one that is recorded there is nothing to tell."""
        recording = self._recording()
        if recording is None:
            self._check(request)
            return self._call.with_call(request, *arguments, **options)
        return self._record(recording, request, *arguments, **options), _NotMade(self._path)

    def future(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """A call whose reply is waited for later; recorded it is just a call."""
        if self._recording() is not None:
            raise RecordingError(
                f"{self._path[1:]}: `future` cannot be recorded; call the method itself"
            )
        self._check(request)
        return self._call.future(request, *arguments, **options)


class _NotMade:
    """The call of a reply that is recorded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        raise RecordingError(
            f"{self._path[1:]}: `{name}` of a call is known when it is made, and this one is recorded"
        )
