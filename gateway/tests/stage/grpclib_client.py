"""What client.py does, by grpclib, which shares no code with gRPC's own libraries: everything goes
through the gateway, to conf.v1.Conformance behind its adapter.

    grpclib_client.py ADDRESS [TEST ...]      all tests if none is named; says which have passed
"""

import asyncio
import statistics
import sys
import time

from conformance import METHODS, NAME, Data
from google.protobuf import descriptor_pb2
from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.health.v1 import health_grpc, health_pb2
from grpclib.reflection.v1 import reflection_grpc, reflection_pb2
from grpclib.reflection.v1alpha import reflection_grpc as alpha_grpc
from grpclib.reflection.v1alpha import reflection_pb2 as alpha_pb2

TIMEOUT_S = 30
MIB = 1 << 20
#: Small messages that nobody reads for a while.
SMALL = 30_000


class Details(StatusDetailsCodecBase):
    """Details as bytes."""

    def encode(self, status, message, details):
        return details

    def decode(self, status, message, data):
        return data


class Call:
    """One call: what came of it, and when."""

    def __init__(self, channel, method, timeout=TIMEOUT_S, metadata=(), service=NAME):
        self.kind = Cardinality(METHODS.get(method, (False, False)))
        self.stream = channel.request(
            f"/{service}/{method}", self.kind, Data, Data, timeout=timeout, metadata=list(metadata)
        )

    async def of(self, *requests):
        """The data of all replies; GRPCError if it failed. `initial` and `trailing` are set then."""
        self.initial = self.trailing = None
        async with self.stream as stream:
            try:
                await stream.send_request()
                for number, request in enumerate(requests, 1):
                    await stream.send_message(Data(data=request), end=number == len(requests))
                if not requests:
                    await stream.end()
                replies = [reply.data async for reply in stream]
                await stream.recv_trailing_metadata()
            finally:
                self.initial, self.trailing = stream.initial_metadata, stream.trailing_metadata
        return replies


async def one(channel, method, request=b"", **options):
    [reply] = await Call(channel, method, **options).of(request)
    return reply


async def fails(awaited):
    try:
        await awaited
    except GRPCError as error:
        return error
    raise AssertionError("it did not fail")


async def reflection(channel):
    for grpc, pb2 in ((reflection_grpc, reflection_pb2), (alpha_grpc, alpha_pb2)):
        ask = grpc.ServerReflectionStub(channel).ServerReflectionInfo
        Ask = pb2.ServerReflectionRequest
        questions = [Ask(list_services=""), Ask(file_containing_symbol=NAME), Ask(file_containing_symbol="conf.v1.No")]
        known, file, missing = await ask(questions, timeout=TIMEOUT_S)
        names = {service.name for service in known.list_services_response.service}
        assert {NAME, "zex.Mesh", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} <= names, names
        [serialized] = file.file_descriptor_response.file_descriptor_proto
        found = descriptor_pb2.FileDescriptorProto.FromString(serialized)
        assert found.name == "conf/v1/conformance.proto"
        assert [method.name for method in found.service[0].method] == list(METHODS)
        assert missing.error_response.error_code == Status.NOT_FOUND.value, missing


async def health(channel):
    check = health_grpc.HealthStub(channel).Check
    for name in ("", NAME):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    error = await fails(check(health_pb2.HealthCheckRequest(service="a.B"), timeout=TIMEOUT_S))
    assert error.status == Status.NOT_FOUND, error


async def codes(channel):
    for status in list(Status)[1:]:
        number = status.value
        error = await fails(one(channel, "Fail", f"{number} näin ei käy {number}\n%".encode()))
        assert error.status == status, (status, error)
        assert error.message == f"näin ei käy {number}\n%", error.message
        assert error.details == b"\x08" + bytes([number]), error.details


async def messages(channel):
    # The last one is 4 MiB with the five bytes in front of its data: the most that the adapter passes on.
    for size in (0, 1, 100_000, 4 * MIB - 5):
        assert await one(channel, "Echo", bytes(size)) == bytes(size), size
    error = await fails(one(channel, "Echo", bytes(4 * MIB)))
    assert error.status == Status.RESOURCE_EXHAUSTED, error


async def streams(channel):
    assert await Call(channel, "Count").of(b"3000") == [str(number).encode() for number in range(3000)]
    assert await Call(channel, "Count").of(b"0") == []
    call = Call(channel, "CountAndFail")
    got = []
    async with call.stream as stream:
        await stream.send_message(Data(data=b"5"), end=True)
        error = await fails(gather(stream, got))
    assert (len(got), error.status, error.message) == (5, Status.DATA_LOSS, "that was all"), error
    # One that is taken back in its middle, far more of it than anybody holds. grpclib sends each message in
    # a frame of its own: the connection must not end of it.
    async with Call(channel, "Count").stream as stream:
        await stream.send_message(Data(data=b"100000000"), end=True)
        assert (await stream.recv_message()).data == b"0"
        await stream.cancel()


async def gather(stream, got):
    async for reply in stream:
        got.append(reply.data)
    await stream.recv_trailing_metadata()


async def requests(channel):
    words = [b"one", b"two", b"three"]
    assert await Call(channel, "Gather").of(*words) == [b"one two three"]
    assert await Call(channel, "Gather").of() == [b""]
    assert await Call(channel, "Chat").of() == []
    # Questions and answers in turns, then all at once.
    async with Call(channel, "Chat").stream as stream:
        for word in words * 100:
            await stream.send_message(Data(data=word))
            assert (await stream.recv_message()).data == word
        await stream.end()
        assert await stream.recv_message() is None
    assert await Call(channel, "Chat").of(*words * 50) == words * 50


async def neighbours(channel):
    # Many small messages that nobody reads, on the connections that everybody shares.
    async with Call(channel, "Count", 4 * TIMEOUT_S).stream as many:
        await many.send_message(Data(data=str(SMALL).encode()), end=True)
        assert (await many.recv_message()).data == b"0"
        held = Call(channel, "Hold", 4 * TIMEOUT_S)
        sent = asyncio.ensure_future(held.of(b"held", *[b"x"] * SMALL))
        assert await one(channel, "Begun", b"held") != b"no"
        for number in range(200):
            data = str(number).encode()
            assert await one(channel, "Echo", data) == data
        assert await one(channel, "Go", b"held") == b"held"
        assert await sent == [str(SMALL).encode()]
        assert [int(reply.data) async for reply in many] == list(range(1, SMALL))


async def metadata(channel):
    sent = [("my-text", "a b"), ("my-text", "again"), ("my-bits-bin", b"\x00\xff,"), ("my-more-bin", b"1234")]
    begin = sorted(("head-" + key, value) for key, value in sent)
    end = sorted(("tail-" + key, value) for key, value in sent)

    def own(entries):
        return sorted((key, value) for key, value in entries.items() if key.startswith(("head-", "tail-")))

    for method in ("Metadata", "Chat"):
        call = Call(channel, method, metadata=sent)
        assert await call.of(b"x") == [b"x"]
        assert own(call.initial) == begin, call.initial
        assert own(call.trailing) == end, call.trailing
    call = Call(channel, "Fail", metadata=sent)
    assert (await fails(call.of(b"9 x"))).status == Status.FAILED_PRECONDITION
    assert own(call.trailing) == end, call.trailing


def within(limit_ms, what, late_ms):
    """Several measurements: a busy machine may hold up one of them, but not most."""
    print(f"{what}, ms: {', '.join(f'{ms:.1f}' for ms in sorted(late_ms))}", flush=True)
    assert abs(statistics.median(late_ms)) <= limit_ms, f"more than {limit_ms} ms: {what}"


async def deadline(channel):
    wrong, told, heard = [], [], []
    for tenth in range(3, 10):
        timeout = tenth / 10
        begun = time.monotonic()
        left = float(await one(channel, "Remaining", timeout=timeout))
        took = time.monotonic() - begun
        assert left <= timeout + 0.01, (left, timeout)
        wrong.append(1_000 * max(0, timeout - took - left))
        name = f"late {tenth}".encode()
        over = time.monotonic() + timeout
        try:
            await one(channel, "Hang", name, timeout=timeout)
            raise AssertionError("it did not end")
        except (asyncio.TimeoutError, GRPCError) as error:
            told.append(1_000 * (time.monotonic() - over))
            assert getattr(error, "status", Status.DEADLINE_EXCEEDED) == Status.DEADLINE_EXCEEDED, error
        heard.append(1_000 * (float(await one(channel, "Ended", name)) - over))
    within(50, "deadlines that the service was told too short by", wrong)
    within(50, "deadlines that the caller heard of late by", told)
    within(50, "deadlines that the service heard of late by", heard)


async def cancel(channel):
    late = []
    for number in range(6):
        name = f"cancelled {number}".encode()
        async with Call(channel, "HangOn" if number % 2 else "Hang", 4 * TIMEOUT_S).stream as stream:
            await stream.send_message(Data(data=name), end=True)
            assert await one(channel, "Begun", name) != b"no", "the call did not arrive"
            over = time.monotonic()
            await stream.cancel()
        ended = await one(channel, "Ended", name)
        assert ended != b"no", "the service did not hear of it"
        late.append(1_000 * (float(ended) - over))
    within(200, "cancels that the handler heard of after", late)


async def unknown(channel):
    error = await fails(one(channel, "Ecko"))
    assert error.status == Status.UNIMPLEMENTED, error
    assert "did you mean `Echo`?" in error.message, error.message
    error = await fails(one(channel, "Echo", service="conf.v1.Conformanse"))
    assert error.status == Status.UNAVAILABLE, error
    assert f"did you mean `{NAME}`?" in error.message, error.message


tests = (reflection, health, codes, messages, streams, requests, neighbours, metadata, deadline, cancel, unknown)
tests = {test.__name__: test for test in tests}


async def main():
    host, port = sys.argv[1].rsplit(":", 1)
    async with Channel(host, int(port), status_details_codec=Details()) as channel:
        for name in sys.argv[2:] or tests:
            await asyncio.wait_for(tests[name](channel), 2 * TIMEOUT_S)
            print(name, "passed", flush=True)


asyncio.run(main())
