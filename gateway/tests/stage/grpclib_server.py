"""conf.v1.Conformance by grpclib, which shares no code with gRPC's own libraries: HTTP/2 in Python.

    grpclib_server.py v1|v1alpha

Prints its port; ends with its input. What its methods do, `conformance` says. It has reflection of one
name only.
"""

import asyncio
import sys
import time

from conformance import HANG_S, METHODS, NAME, NOTED_S, Data
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.reflection.service import ServerReflection
from grpclib.server import Server
from multidict import MultiDict

# When the requests began that hang, and when they ended, by name, on the machine's clock.
begun, ended = {}, {}


class Details(StatusDetailsCodecBase):
    """Details are bytes here: the codec of grpclib wants google.rpc.Status."""

    def encode(self, status, message, details):
        return details

    def decode(self, status, message, data):
        return data


def around(stream, prefix):
    """The caller's own metadata under other names."""
    own = [(key, value) for key, value in stream.metadata.items() if key.startswith("my-")]
    return MultiDict([(prefix + key, value) for key, value in own])


class Conformance:
    def __mapping__(self):
        return {
            f"/{NAME}/{name}": Handler(getattr(self, name), Cardinality(kind), Data, Data)
            for name, kind in METHODS.items()
        }

    async def Echo(self, stream):
        await stream.send_message(await stream.recv_message())

    async def Fail(self, stream):
        code, message = (await stream.recv_message()).data.decode().split(" ", 1)
        await stream.send_initial_metadata(metadata=around(stream, "head-"))
        await stream.send_trailing_metadata(
            status=Status(int(code)),
            status_message=message,
            status_details=b"\x08" + bytes([int(code)]),
            metadata=around(stream, "tail-"),
        )

    async def Remaining(self, stream):
        await stream.recv_message()
        await stream.send_message(Data(data=str(stream.deadline.time_remaining()).encode()))

    async def Hang(self, stream):
        name = (await stream.recv_message()).data
        begun[name] = time.monotonic()
        try:
            await asyncio.sleep(HANG_S)
        finally:
            ended[name] = time.monotonic()

    async def HangOn(self, stream):
        name = (await stream.recv_message()).data
        begun[name] = time.monotonic()
        try:
            await stream.send_message(Data(data=name))
            await asyncio.sleep(HANG_S)
        finally:
            ended[name] = time.monotonic()

    async def Begun(self, stream):
        await self._noted(stream, begun)

    async def Ended(self, stream):
        await self._noted(stream, ended)

    async def _noted(self, stream, times):
        name, until = (await stream.recv_message()).data, time.monotonic() + NOTED_S
        while name not in times and time.monotonic() < until:
            await asyncio.sleep(0.005)
        await stream.send_message(Data(data=str(times.get(name, "no")).encode()))

    async def Metadata(self, stream):
        request = await stream.recv_message()
        await stream.send_initial_metadata(metadata=around(stream, "head-"))
        await stream.send_message(request)
        await stream.send_trailing_metadata(metadata=around(stream, "tail-"))

    async def Count(self, stream):
        for number in range(int((await stream.recv_message()).data)):
            await stream.send_message(Data(data=str(number).encode()))

    async def CountAndFail(self, stream):
        await self.Count(stream)
        raise GRPCError(Status.DATA_LOSS, "that was all")

    async def Gather(self, stream):
        words = [request.data async for request in stream]
        await stream.send_message(Data(data=b" ".join(words)))

    async def Hold(self, stream):
        name = (await stream.recv_message()).data
        begun[name] = time.monotonic()
        while name not in ended:
            await asyncio.sleep(0.005)
        others = [request async for request in stream]
        await stream.send_message(Data(data=str(len(others)).encode()))

    async def Go(self, stream):
        request = await stream.recv_message()
        ended[request.data] = time.monotonic()
        await stream.send_message(request)

    async def Chat(self, stream):
        await stream.send_initial_metadata(metadata=around(stream, "head-"))
        async for request in stream:
            await stream.send_message(request)
        await stream.send_trailing_metadata(metadata=around(stream, "tail-"))


async def main():
    handlers = ServerReflection.extend([Conformance()])
    wanted = f"/grpc.reflection.{sys.argv[1]}.ServerReflection/ServerReflectionInfo"
    [reflection] = [handler for handler in handlers if wanted in handler.__mapping__()]
    server = Server([handlers[0], reflection], status_details_codec=Details())
    await server.start("127.0.0.1", 0)
    [socket] = server._server.sockets
    print(socket.getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    await server.wait_closed()


asyncio.run(main())
