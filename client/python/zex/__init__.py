"""Client and worker for a Zex mesh.

- `Client`: `call`, `submit`, `stream`. `Worker`: `method`, `serve`, `run`. `Error`, `Code`.
- `connect`: channels for ordinary gRPC stubs, pipelines recorded from their calls (needs the packages
  `grpcio` and `protobuf`). `RecordingError`, `RunFailed`.
- `zex.ez`: the protocol of 2020, for old scripts. `zex.reflection`: messages built from the
  descriptors that services hand out (needs the package `protobuf`).
- `zex.wire`, `zex.ids`: the bytes, for whoever writes tools.

Needs pyzmq and msgpack. What travels is specified in `spec/protocol.md` of the project.
"""

from typing import TYPE_CHECKING, Optional

from .calls import Stream
from .client import Client
from .errors import Code, Error, Malformed, RecordingError, RunFailed
from .ez import EzClient, EzWorker
from .loop import Endpoints
from .work import Context
from .worker import Worker

if TYPE_CHECKING:
    from .mesh import Mesh

__all__ = [
    "Client", "Code", "Context", "Error", "EzClient", "EzWorker", "Malformed", "RecordingError",
    "RunFailed", "Stream", "Worker", "connect",
]  # fmt: skip
__version__ = "0.1.0"


def connect(in_pipes: Optional[Endpoints] = None, gateway: Optional[str] = None) -> "Mesh":
    """The mesh at these in pipes and this gateway; else where the environment says (`zex.mesh`)."""
    from . import mesh  # Needs packages that nothing else here does.

    return mesh.connect(in_pipes, gateway)
