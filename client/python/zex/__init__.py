"""Client and worker for a Zex mesh.

- `Client`: `call`, `submit`, `stream`. `Worker`: `method`, `serve`, `run`. `Error`, `Code`.
- `zex.ez`: the protocol of 2020, for old scripts. `zex.reflection`: messages built from the
  descriptors that services hand out (needs the package `protobuf`).
- `zex.wire`, `zex.ids`: the bytes, for whoever writes tools.

Needs pyzmq and msgpack. What travels is specified in `spec/protocol.md` of the project.
"""

from .calls import Stream
from .client import Client
from .errors import Code, Error, Malformed
from .ez import EzClient, EzWorker
from .work import Context
from .worker import Worker

__all__ = [
    "Client", "Code", "Context", "Error", "EzClient", "EzWorker", "Malformed", "Stream", "Worker",
]  # fmt: skip
__version__ = "0.1.0"
