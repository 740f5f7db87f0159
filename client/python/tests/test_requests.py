"""Streams of requests, and what comes around answers: the package's client and worker through a real
mesh, and each of them with gRPC at the other end."""

import os
import threading
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2
from mesh import Mesh, serving, until
from shop import NAME, Shop, User

import zex
from zex import Code

SOON = 30.0


@pytest.fixture
def worker(mesh):
    worker = zex.Worker(mesh.worker_pipe, name=f"test-{os.urandom(4).hex()}")

    @worker.method("test.Streams", "Echo", stream=True)
    def echo(requests, context):
        context.headers.append(("x-begin", "echo"))
        context.send_headers()
        yield from requests
        context.trailers.append(("x-end-bin", b"\0\xff"))

    @worker.method("test.Streams", "Sum", stream=True)
    def total(requests, context):
        context.trailers.append(("x-count", "all"))
        return str(sum(len(request) for request in requests)).encode()

    yield worker
    worker.stop(0)


def test_a_worker_with_labels_is_found_by_them(mesh, client):
    with pytest.raises(ValueError, match="is no label"):
        zex.Worker(mesh.worker_pipe, labels=["a b"])
    with pytest.raises(ValueError, match="at most 8 labels"):
        zex.Worker(mesh.worker_pipe, labels=[f"l{number}" for number in range(9)])
    name = f"test.Labels{os.urandom(4).hex()}"
    with zex.Worker(mesh.worker_pipe, labels=["gpu", "", "node=a"]) as worker:
        worker.serve(name, lambda method, request, context: context.service.encode())
        assert client.call(f"{name}@node=a", "Any", b"", wait=True) == name.encode()
        assert client.call(f"{name}@gpu", "Any", b"", wait=True) == name.encode()
        with pytest.raises(zex.Error):
            client.call(f"{name}@node=b", "Any", b"")
        with pytest.raises(ValueError, match="behind an @ stands a label"):
            worker.serve(f"{name}@gpu", lambda method, request, context: b"")


def handed_on(mesh, client, worker):
    info = mesh.workers(client)[worker.name]
    return info.assigned == 0 and info.in_flight == 0


def code_of(call):
    with pytest.raises(zex.Error) as caught:
        call()
    return caught.value.code


def test_what_is_sent_comes_back_in_order_whatever_its_size(mesh, client, worker):
    sizes = [0, 1, 65_531, 65_532, 65_533, 3, 700_000, 4 << 20, 0, *range(300)]
    bodies = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    with serving(mesh, client, worker):
        assert list(client.stream("test.Streams", "Echo", requests=bodies)) == bodies
        assert list(client.stream("test.Streams", "Echo", requests=[])) == []
        assert client.call("test.Streams", "Sum", requests=iter(bodies)) == str(sum(sizes)).encode()
        assert client.call("test.Streams", "Sum", requests=[]) == b"0"
        until(lambda: handed_on(mesh, client, worker), SOON, "an assignment is left")


def test_questions_and_answers_take_turns(mesh, client, worker):
    asked, answers = threading.Semaphore(1), []

    def questions():
        for number in range(50):
            assert asked.acquire(timeout=SOON), "the answer to the last one did not come"
            yield str(number).encode()

    with (
        serving(mesh, client, worker),
        client.stream("test.Streams", "Echo", requests=questions()) as stream,
    ):
        for answer in stream:
            answers.append(int(answer))
            asked.release()
    assert answers == list(range(50))


def test_headers_come_ahead_and_trailers_at_the_end(mesh, client, worker):
    more = threading.Event()

    def requests():
        assert more.wait(SOON)
        yield b"one"

    with serving(mesh, client, worker):
        stream = client.stream("test.Streams", "Echo", requests=requests())
        assert stream.headers() == [("x-begin", "echo")]
        assert stream.trailers == []
        more.set()
        assert list(stream) == [b"one"]
        assert (stream.headers(), stream.trailers) == (
            [("x-begin", "echo")],
            [("x-end-bin", b"\0\xff")],
        )
        answer = client.answer("test.Streams", "Sum", requests=[b"four"])
        assert answer == (b"4", [], [("x-count", "all")])


def test_what_comes_around_a_reply_and_around_an_error(mesh, client, worker):
    @worker.method("test.Streams", "Say")
    def say(request, context):
        context.headers[:] = [("x-a", "1"), ("x-a", "2")]
        context.trailers[:] = [("x-t", "end")]
        if request == b"fail":
            context.abort(Code.ABORTED, "as asked", b"details")
        return request

    @worker.method("test.Streams", "Stream")
    def stream(request, context):
        context.headers.append(("x-h", "head"))
        yield b"one"
        context.trailers.append(("x-t", "tail"))
        context.abort(Code.DATA_LOSS, "that was all")

    with serving(mesh, client, worker):
        answer = client.answer("test.Streams", "Say", b"hi")
        assert answer == (b"hi", [("x-a", "1"), ("x-a", "2")], [("x-t", "end")])
        with pytest.raises(zex.Error) as caught:
            client.call("test.Streams", "Say", b"fail")
        assert caught.value.details == b"details"
        assert (caught.value.headers, caught.value.trailers) == (answer.headers, answer.trailers)
        got = client.stream("test.Streams", "Stream")
        assert (got.headers(), next(got)) == ([("x-h", "head")], b"one")
        assert code_of(lambda: next(got)) == Code.DATA_LOSS
        assert got.trailers == [("x-t", "tail")]


def test_a_handler_that_does_not_read_slows_the_caller(mesh, client, worker):
    go_on, produced = threading.Event(), []

    @worker.method("test.Streams", "Slow", stream=True)
    def slow(requests, context):
        first = next(iter(requests))
        assert go_on.wait(SOON)
        return str(len(first) + sum(len(request) for request in requests)).encode()

    def requests():
        for number in range(640):
            produced.append(number)
            yield bytes(64 << 10)

    with serving(mesh, client, worker):
        replies = []
        call = threading.Thread(
            target=lambda: replies.append(
                client.call("test.Streams", "Slow", requests=requests(), deadline_s=60)
            )
        )
        call.start()
        # 1 MiB of credit, what the reader took with its first message, and what waits to be sent.
        until(lambda: len(produced) >= 16, SOON, "nothing is sent")
        seen = -1
        while seen != len(produced):
            seen = len(produced)
            time.sleep(0.5)  # It stands still: nothing shows a state that lasts but time.
        assert len(produced) <= 16 * 2 + 8
        go_on.set()
        call.join(60)
    assert replies == [str(640 * (64 << 10)).encode()]


def test_a_worker_that_ends_early_ends_the_requests(mesh, client, worker):
    over = threading.Event()

    @worker.method("test.Streams", "First", stream=True)
    def first(requests, context):
        return next(iter(requests))

    def requests():
        try:
            for number in range(1 << 30):
                yield str(number).encode() * 1_000
        finally:
            over.set()

    with serving(mesh, client, worker):
        assert client.call("test.Streams", "First", requests=requests()) == b"0" * 1_000
        assert over.wait(SOON)
        until(lambda: handed_on(mesh, client, worker), SOON, "an assignment is left")


def test_a_caller_that_goes_away_ends_the_handler(mesh, client, worker):
    ends, hold = [], threading.Event()

    @worker.method("test.Streams", "Wait", stream=True)
    def wait(requests, context):
        try:
            for request in requests:
                yield request
        except zex.Error as error:
            ends.append(error.code)
            raise

    def endless():
        yield b"one"
        hold.wait(SOON)

    with serving(mesh, client, worker):
        stream = client.stream("test.Streams", "Wait", requests=endless())
        assert next(stream) == b"one"
        stream.close()
        until(lambda: ends == [Code.CANCELLED], SOON, "the handler does not hear of it")
        hold.set()
        until(lambda: handed_on(mesh, client, worker), SOON, "an assignment is left")


def test_requests_that_fail_end_the_call(mesh, client, worker):
    def broken():
        yield b"one"
        raise ValueError("no more of them")

    with serving(mesh, client, worker):
        with pytest.raises(zex.Error, match="ValueError: no more of them") as caught:
            client.call("test.Streams", "Sum", requests=broken())
        assert caught.value.code == Code.UNKNOWN
        with pytest.raises(zex.Error, match="a request is bytes or a protobuf message, not int"):
            client.call("test.Streams", "Sum", requests=[b"one", 2])
        until(lambda: handed_on(mesh, client, worker), SOON, "an assignment is left")


def test_what_does_not_fit_is_refused(mesh, client, worker):
    @worker.method("test.Streams", "One")
    def one(request, context):
        return request

    with pytest.raises(TypeError, match="one request or a stream of them"):
        client.stream("test.Streams", "Echo", b"one", requests=[b"two"])
    with pytest.raises(TypeError, match="not iterable"):
        client.call("test.Streams", "Echo", requests=7)
    with serving(mesh, client, worker):
        with pytest.raises(zex.Error, match="takes one request here, not a stream") as caught:
            client.call("test.Streams", "One", requests=[b"x"])
        assert caught.value.code == Code.UNIMPLEMENTED
        # A call that is none of a stream is one of one, to who takes streams.
        assert client.call("test.Streams", "Sum", b"four") == b"4"


def test_a_deadline_ends_a_stream_of_requests(mesh, client, worker):
    hold = threading.Event()

    def endless():
        yield b"one"
        hold.wait(SOON)

    with serving(mesh, client, worker):
        begun = time.monotonic()
        call = lambda: client.call("test.Streams", "Sum", requests=endless(), deadline_s=0.5)  # noqa: E731
        assert code_of(call) == Code.DEADLINE_EXCEEDED
        assert 0.5 <= time.monotonic() - begun < 5
        hold.set()
        until(lambda: handed_on(mesh, client, worker), SOON, "an assignment is left")


def test_both_ends_hear_of_a_broker_that_died():
    ends = []
    with Mesh(apart=True, brokers=1) as mesh, zex.Client(mesh.in_pipe) as client:
        worker = zex.Worker(mesh.worker_pipe)

        @worker.method("test.Streams", "Echo", stream=True)
        def echo(requests, context):
            try:
                yield from requests
            except zex.Error as error:
                ends.append(error.code)
                raise

        over = threading.Event()

        def endless():
            yield b"one"
            over.wait(SOON)

        with serving(mesh, client, worker):
            stream = client.stream("test.Streams", "Echo", requests=endless())
            assert next(stream) == b"one"
            mesh.kill("broker-1")
            begun = time.monotonic()
            assert code_of(lambda: next(stream)) == Code.UNAVAILABLE
            assert time.monotonic() - begun < 3
            until(lambda: ends == [Code.UNAVAILABLE], 5, "the handler does not hear of it")
            over.set()
            worker.stop(0)  # There is nobody left to say goodbye to.


# ── gRPC at the other end ───────────────────────────────────────────────────────────────────


def test_a_grpc_service_gets_a_stream_of_requests(mesh, client):
    with Shop() as shop:
        mesh.start("adapter-gather", "adapter", f"http://127.0.0.1:{shop.port}")
        until(
            lambda: any(NAME in w.services for w in mesh.workers(client).values()),
            SOON,
            f"no {NAME}",
        )
        words = [User(name=f"word {number}") for number in range(3_000)]
        reply = client.call(NAME, "Gather", requests=words, reply_type=User)
        assert list(reply.tags) == [word.name for word in words]
        mesh.processes.pop("adapter-gather").terminate()
        until(
            lambda: not any(NAME in w.services for w in mesh.workers(client).values()),
            SOON,
            f"{NAME} stays",
        )


def test_a_grpc_client_calls_a_worker_of_the_package(mesh, client, worker):
    file = descriptor_pb2.FileDescriptorProto(name="streams.proto", package="test", syntax="proto3")
    file.message_type.add(name="Any")
    streams = file.service.add(name="Streams")
    any_ = {"input_type": ".test.Any", "output_type": ".test.Any"}
    streams.method.add(name="Echo", client_streaming=True, server_streaming=True, **any_)
    streams.method.add(name="Sum", client_streaming=True, **any_)
    worker.describe(
        "test.Streams", descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    )
    with serving(mesh, client, worker), grpc.insecure_channel(mesh.gateway) as channel:
        chat = channel.stream_stream("/test.Streams/Echo")
        answers = chat(iter([b"one", b"two"]), timeout=SOON)
        assert ("x-begin", "echo") in [tuple(entry) for entry in answers.initial_metadata()], (
            answers.details()
        )
        assert list(answers) == [b"one", b"two"]
        assert ("x-end-bin", b"\0\xff") in [tuple(entry) for entry in answers.trailing_metadata()]
        gather = channel.stream_unary("/test.Streams/Sum")
        assert gather(iter([b"one", b"three"]), timeout=SOON) == b"8"
