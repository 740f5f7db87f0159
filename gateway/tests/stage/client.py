"""A gRPC client as one writes it in Python, for tests/conformance.rs: everything it does goes through the
gateway, to conf.v1.Conformance behind its adapter.

    client.py ADDRESS [TEST ...]      all tests if none is named; says which have passed
"""

import itertools
import statistics
import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

NAME = "conf.v1.Conformance"
TIMEOUT_S = 30
MIB = 1 << 20
#: Small messages that nobody reads for a while.
SMALL = 30_000

options = [("grpc.max_receive_message_length", 16 * MIB), ("grpc.max_send_message_length", 16 * MIB)]
channel = grpc.insecure_channel(sys.argv[1], options=options)
# Everything that is known here of the service comes from the gateway's reflection.
seen = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(seen)
service = pool.FindServiceByName(NAME)
Data = message_factory.GetMessageClass(service.FindMethodByName("Echo").input_type)


def stub(method, takes="unary", gives="unary", service=NAME):
    make = getattr(channel, f"{takes}_{gives}")
    path = f"/{service}/{method}"
    return make(path, request_serializer=Data.SerializeToString, response_deserializer=Data.FromString)


def fails(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def reflection():
    services = set(seen.get_services())
    wanted = {NAME, "zex.Mesh", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
    assert wanted <= services, services
    assert [method.name for method in service.methods][:2] == ["Echo", "Fail"]
    assert pool.FindServiceByName("zex.Mesh").FindMethodByName("Brokers")
    assert pool.FindFileByName("conf/v1/conformance.proto").package == "conf.v1"
    try:
        pool.FindServiceByName("conf.v1.Nothing")
        raise AssertionError("there is no such service")
    except KeyError:
        pass


def health():
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", NAME):
        answer = check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    error = fails(lambda: check(health_pb2.HealthCheckRequest(service="a.B"), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.NOT_FOUND, error


def codes():
    for code in list(grpc.StatusCode)[1:]:
        number = code.value[0]
        request = Data(data=f"{number} näin ei käy {number}\n%".encode())
        error = fails(lambda: stub("Fail")(request, timeout=TIMEOUT_S))
        assert error.code() == code, (code, error)
        assert error.details() == f"näin ei käy {number}\n%", error.details()
        trailers = dict(error.trailing_metadata())
        assert trailers["grpc-status-details-bin"] == b"\x08" + bytes([number]), trailers


def messages():
    # The last one is 4 MiB with the five bytes in front of its data: the most that the adapter passes on.
    for size in (0, 1, 100_000, 4 * MIB - 5):
        data = bytes(size)
        assert stub("Echo")(Data(data=data), timeout=TIMEOUT_S).data == data, size
    error = fails(lambda: stub("Echo")(Data(data=bytes(4 * MIB)), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    compressed = stub("Echo")(
        Data(data=bytes(MIB)), timeout=TIMEOUT_S, compression=grpc.Compression.Gzip
    )
    assert compressed.data == bytes(MIB)


def streams():
    numbers = [int(one.data) for one in stub("Count", gives="stream")(Data(data=b"3000"), timeout=TIMEOUT_S)]
    assert numbers == list(range(3000))
    assert list(stub("Count", gives="stream")(Data(data=b"0"), timeout=TIMEOUT_S)) == []
    got = []
    error = fails(lambda: got.extend(stub("CountAndFail", gives="stream")(Data(data=b"5"), timeout=TIMEOUT_S)))
    assert (len(got), error.code(), error.details()) == (5, grpc.StatusCode.DATA_LOSS, "that was all")
    # One that is taken back in its middle.
    call = stub("Count", gives="stream")(Data(data=b"100000000"), timeout=TIMEOUT_S)
    next(call)
    call.cancel()
    assert fails(lambda: list(call)).code() == grpc.StatusCode.CANCELLED


def requests():
    words = [Data(data=word) for word in (b"one", b"two", b"three")]
    assert stub("Gather", takes="stream")(iter(words), timeout=TIMEOUT_S).data == b"one two three"
    assert stub("Gather", takes="stream")(iter([]), timeout=TIMEOUT_S).data == b""
    replies = stub("Chat", takes="stream", gives="stream")(iter(words * 300), timeout=TIMEOUT_S)
    assert [reply.data for reply in replies] == [word.data for word in words] * 300


def neighbours():
    # Many small messages that nobody reads, on the connections that everybody shares.
    many = stub("Count", gives="stream")(Data(data=str(SMALL).encode()), timeout=4 * TIMEOUT_S)
    assert next(many).data == b"0"
    held, name = stub("Hold", takes="stream"), Data(data=b"held")
    sent = held.future(itertools.chain([name], itertools.repeat(Data(data=b"x"), SMALL)), timeout=4 * TIMEOUT_S)
    assert stub("Begun")(name, timeout=TIMEOUT_S).data != b"no"
    for number in range(200):
        data = Data(data=str(number).encode())
        assert stub("Echo")(data, timeout=TIMEOUT_S) == data
    assert stub("Go")(name, timeout=TIMEOUT_S) == name
    assert int(sent.result().data) == SMALL
    assert [int(one.data) for one in many] == list(range(1, SMALL))


def metadata():
    # No empty ones: grpclib has none.
    sent = [("my-text", "a b"), ("my-text", "again"), ("my-bits-bin", b"\x00\xff,"), ("my-more-bin", b"1234")]
    begin = sorted(("head-" + key, value) for key, value in sent)
    end = sorted(("tail-" + key, value) for key, value in sent)

    def own(entries):
        return sorted((key, value) for key, value in entries if key.startswith(("head-", "tail-")))

    reply, call = stub("Metadata").with_call(Data(data=b"x"), metadata=sent, timeout=TIMEOUT_S)
    assert reply.data == b"x"
    assert own(call.initial_metadata()) == begin, call.initial_metadata()
    assert own(call.trailing_metadata()) == end, call.trailing_metadata()
    error = fails(lambda: stub("Fail")(Data(data=b"9 x"), metadata=sent, timeout=TIMEOUT_S))
    assert own(error.trailing_metadata()) == end, error.trailing_metadata()
    chat = stub("Chat", takes="stream", gives="stream")(iter([Data(data=b"x")]), metadata=sent, timeout=TIMEOUT_S)
    assert own(chat.initial_metadata()) == begin
    assert [reply.data for reply in chat] == [b"x"]
    assert own(chat.trailing_metadata()) == end


def within(limit_ms, what, late_ms):
    """Several measurements: a busy machine may hold up one of them, but not most."""
    print(f"{what}, ms: {', '.join(f'{ms:.1f}' for ms in sorted(late_ms))}", flush=True)
    assert abs(statistics.median(late_ms)) <= limit_ms, f"more than {limit_ms} ms: {what}"


def deadline():
    # grpcio itself rounds longer ones up to a tenth of a second.
    wrong, told, heard = [], [], []
    for tenth in range(3, 10):
        timeout = tenth / 10
        begun = time.monotonic()
        left = float(stub("Remaining")(Data(), timeout=timeout).data)
        took = time.monotonic() - begun
        assert left <= timeout + 0.01, (left, timeout)
        wrong.append(1_000 * max(0, timeout - took - left))
        name = Data(data=f"late {tenth}".encode())
        over = time.monotonic() + timeout
        error = fails(lambda: stub("Hang")(name, timeout=timeout))
        told.append(1_000 * (time.monotonic() - over))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        heard.append(1_000 * (float(stub("Ended")(name, timeout=TIMEOUT_S).data) - over))
    within(50, "deadlines that the service was told too short by", wrong)
    within(50, "deadlines that the caller heard of late by", told)
    within(50, "deadlines that the service heard of late by", heard)


def cancel():
    late = []
    for number in range(6):
        name = Data(data=f"cancelled {number}".encode())
        if number % 2:
            call = stub("Hang").future(name, timeout=4 * TIMEOUT_S)
        else:
            call = stub("HangOn", gives="stream")(name, timeout=4 * TIMEOUT_S)
            assert next(call) == name
        assert stub("Begun")(name, timeout=TIMEOUT_S).data != b"no", "the call did not arrive"
        over = time.monotonic()
        call.cancel()
        ended = stub("Ended")(name, timeout=TIMEOUT_S).data
        assert ended != b"no", "the service did not hear of it"
        late.append(1_000 * (float(ended) - over))
    within(200, "cancels that the handler heard of after", late)


def unknown():
    error = fails(lambda: stub("Ecko")(Data(), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
    assert "did you mean `Echo`?" in error.details(), error.details()
    error = fails(lambda: stub("Echo", service="conf.v1.Conformanse")(Data(), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    assert f"did you mean `{NAME}`?" in error.details(), error.details()


tests = {t.__name__: t for t in (reflection, health, codes, messages, streams, requests, neighbours, metadata, deadline, cancel, unknown)}
for name in sys.argv[2:] or tests:
    tests[name]()
    print(name, "passed", flush=True)
