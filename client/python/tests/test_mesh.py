"""The package's client and worker, back to back through a real mesh."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from mesh import serving, until

import zex
from zex import Code
from zex.reflection import Reflection


@pytest.fixture
def new_worker(mesh):
    """Makes workers that are not started yet."""
    made = []

    def make(**options):
        options.setdefault("name", f"test-{os.urandom(4).hex()}")
        made.append(zex.Worker(mesh.worker_pipe, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.stop(0)


def code_of(function, *arguments, **options):
    with pytest.raises(zex.Error) as caught:
        function(*arguments, **options)
    return caught.value.code


def idle(mesh, client, worker):
    """Whether the mesh counts nothing as assigned to this worker."""
    info = mesh.workers(client)[worker.name]
    return info.assigned == 0 and info.in_flight == 0


# ── calls ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 8_192, 8_193, 1_000_000, 16 << 20])
def test_bodies_come_back(mesh, client, new_worker, size):
    worker = new_worker()
    worker.method("test.Echo", "Echo")(lambda request, context: request)
    body = os.urandom(size)
    with serving(mesh, client, worker):
        assert client.call("test.Echo", "Echo", body) == body


def test_a_body_over_the_limit_is_refused_at_once(client):
    assert code_of(client.call, "a.B", "C", bytes((16 << 20) + 1)) == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("service", "method"), [("", "M"), ("S", ""), ("s" * 256, "M")])
def test_a_bad_name_is_refused_at_once(client, service, method):
    assert code_of(client.call, service, method) == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("priority", [-1, 10])
def test_a_priority_that_there_is_not_is_refused_at_once(client, priority):
    for call in (client.call, client.submit, client.stream):
        assert code_of(call, "a.B", "C", b"", priority=priority) == Code.INVALID_ARGUMENT


def test_a_priority_goes_with_the_call(mesh, client, new_worker):
    worker = new_worker()
    worker.method("test.Echo", "Echo")(lambda request, context: request)
    with serving(mesh, client, worker):
        assert client.call("test.Echo", "Echo", b"urgent", priority=9) == b"urgent"


def test_errors_arrive_as_they_were_raised(mesh, client, new_worker):
    worker = new_worker()

    @worker.method("test.Errors", "Raise")
    def raise_(request, context):
        context.abort(Code.NOT_FOUND, "no user 17", b"details")

    @worker.method("test.Errors", "Crash")
    def crash(request, context):
        raise ValueError("a mistake")

    @worker.method("test.Errors", "Nonsense")
    def nonsense(request, context):
        return 17

    with serving(mesh, client, worker):
        with pytest.raises(zex.Error) as caught:
            client.call("test.Errors", "Raise")
        error = caught.value
        assert (error.code, error.message) == (Code.NOT_FOUND, "no user 17")
        assert error.details == b"details"
        with pytest.raises(zex.Error, match="ValueError: a mistake") as caught:
            client.call("test.Errors", "Crash")
        assert caught.value.code == Code.INTERNAL
        assert code_of(client.call, "test.Errors", "Nonsense") == Code.INTERNAL
        assert code_of(client.call, "test.Errors", "Missing") == Code.UNIMPLEMENTED


def test_no_end_of_a_handler_costs_capacity(mesh, client, new_worker):
    worker = new_worker(capacity=1)

    class Unprintable(Exception):
        def __str__(self):
            raise ValueError("no text either")

    class Unfinished(zex.Error):
        def __init__(self):  # Without its base's, so without a code.
            pass

    ends = {
        "exit": (SystemExit, (3,), Code.INTERNAL, "SystemExit: 3"),
        "unprintable": (Unprintable, (), Code.INTERNAL, "Unprintable"),
        "unfinished": (Unfinished, (), Code.INTERNAL, "no attribute"),
        "wrapped": (zex.Error, (5, KeyError("user 17")), Code.NOT_FOUND, "user 17"),
    }

    @worker.method("test.Ends", "End")
    def end(request, context):
        kind, arguments, _, _ = ends[request.decode()]
        raise kind(*arguments)

    with serving(mesh, client, worker):
        for name, (_, _, code, words) in ends.items():
            with pytest.raises(zex.Error, match=words) as caught:
                client.call("test.Ends", "End", name.encode(), 5)
            assert caught.value.code == code
        until(lambda: idle(mesh, client, worker), 5, "an ended call is still assigned")


def test_an_unknown_service_is_unavailable_at_once(client):
    began = time.monotonic()
    assert code_of(client.call, "test.Nobody", "Method") == Code.UNAVAILABLE
    assert time.monotonic() - began < 2


def test_a_call_may_wait_for_its_worker(mesh, client, new_worker):
    future = client.submit("test.Late", "Echo", b"hello", 20, wait=True)
    worker = new_worker()
    worker.method("test.Late", "Echo")(lambda request, context: request)
    with worker:
        assert future.result(20) == b"hello"


def test_no_mesh_is_an_error_in_words():
    with zex.Client("tcp://127.0.0.1:1") as client:
        with pytest.raises(zex.Error, match="no in pipe answers at tcp://127.0.0.1:1") as caught:
            client.call("a.B", "C")
        assert caught.value.code == Code.UNAVAILABLE


def test_a_closed_client_says_so(mesh):
    client = zex.Client(mesh.in_pipe)
    waiting = client.submit("test.Nobody.Ever", "M", b"", 30, wait=True)
    client.close()
    assert waiting.exception(10).code == Code.CANCELLED
    assert code_of(client.call, "a.B", "C") == Code.CANCELLED


def test_the_deadline_ends_a_call_and_tells_the_handler(mesh, client, new_worker):
    worker, told = new_worker(), threading.Event()

    @worker.method("test.Slow", "Sleep")
    def sleep(request, context):
        while context.wait(5):
            pass
        told.set()
        return b"too late"

    with serving(mesh, client, worker):
        began = time.monotonic()
        assert code_of(client.call, "test.Slow", "Sleep", b"", 0.5) == Code.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 2
        assert told.wait(5)
        until(lambda: idle(mesh, client, worker), 5, "the call is still assigned")


def test_a_key_runs_once_however_often_it_is_sent(mesh, client, new_worker):
    worker, runs = new_worker(capacity=4), []

    @worker.method("test.Once", "Count")
    def count(request, context):
        runs.append(context.key)
        context.wait(0.2)
        return str(len(runs)).encode()

    key = os.urandom(16)
    with serving(mesh, client, worker), zex.Client(mesh.in_pipe) as other:
        both = [one.submit("test.Once", "Count", b"", 10, key=key) for one in (client, other)]
        # The newest asker gets the answer; the other asks again a second later, and gets the same.
        assert [future.result(10) for future in both] == [b"1", b"1"]
        assert client.call("test.Once", "Count", b"", 10, key=key) == b"1"
        assert runs == [key]
        assert client.call("test.Once", "Count", b"", 10) == b"2"


def test_many_callers_share_one_client(mesh, client, new_worker):
    workers = [new_worker(capacity=8) for _ in range(3)]
    for worker in workers:
        worker.method("test.Many", "Echo")(lambda request, context: request)
    with serving(mesh, client, *workers), ThreadPoolExecutor(32) as callers:
        bodies = [str(number).encode() for number in range(2_000)]
        replies = callers.map(lambda body: client.call("test.Many", "Echo", body), bodies)
        assert list(replies) == bodies
        for worker in workers:
            until(partial(idle, mesh, client, worker), 5, "answered calls are still assigned")


def test_work_goes_to_the_least_assigned(mesh, client, new_worker):
    workers = [new_worker(capacity=20) for _ in range(4)]
    running, go_on = {worker.name: 0 for worker in workers}, threading.Event()

    def handler(name):
        def handle(request, context):
            running[name] += 1
            go_on.wait(20)
            return b""

        return handle

    for worker in workers:
        worker.method("test.Least", "Hold")(handler(worker.name))
    with serving(mesh, client, *workers):
        calls = [client.submit("test.Least", "Hold", b"", 30) for _ in range(40)]
        try:
            until(lambda: sum(running.values()) == 40, 10, "not all calls run")
            assert set(running.values()) == {10}
        finally:
            go_on.set()
        for call in calls:
            assert call.result(10) == b""


def test_above_the_capacity_calls_wait_their_turn(mesh, client, new_worker):
    worker, most, lock = new_worker(capacity=2), [0, 0], threading.Lock()

    @worker.method("test.Two", "Hold")
    def hold(request, context):
        with lock:
            most[0] += 1
            most[1] = max(most)
        context.wait(0.05)
        with lock:
            most[0] -= 1
        return b""

    with serving(mesh, client, worker):
        calls = [client.submit("test.Two", "Hold", b"", 30) for _ in range(20)]
        assert [call.result(20) for call in calls] == [b""] * 20
    assert most[1] == 2


def test_a_stopping_worker_finishes_what_it_holds(mesh, client, new_worker):
    leaving, staying = new_worker(name="leaving"), new_worker(name="staying")
    begun = threading.Event()

    def work(request, context):
        begun.set()
        context.wait(0.3)
        return request

    for worker in (leaving, staying):
        worker.method("test.Drain", "Work")(work)
    with serving(mesh, client, leaving, staying):
        calls = [client.submit("test.Drain", "Work", b"%d" % n, 20) for n in range(12)]
        assert begun.wait(5)
        leaving.stop()
        # Not in the mesh any more, and nothing was lost.
        until(lambda: "leaving" not in mesh.workers(client), 3, "it is still there")
        more = [client.submit("test.Drain", "Work", b"%d" % n, 20) for n in range(12, 16)]
        replies = [call.result(20) for call in calls + more]
    assert replies == [b"%d" % n for n in range(16)]


def test_a_service_may_come_while_a_worker_runs(mesh, client, new_worker):
    worker = new_worker()
    worker.method("test.First", "M")(lambda request, context: b"first")
    with serving(mesh, client, worker):
        worker.serve("test.Second", lambda method, request, context: method.encode())
        assert client.call("test.Second", "Anything", wait=True) == b"Anything"
        assert client.call("test.First", "M") == b"first"
        assert list(mesh.workers(client)[worker.name].services) == ["test.First", "test.Second"]


# ── streams ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def streams(mesh, client, new_worker):
    """A worker of streams; `streams.state` says what its handlers saw."""
    worker = new_worker()
    worker.state = {"sent": 0, "closed": threading.Event()}

    @worker.method("test.Streams", "Count")
    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    @worker.method("test.Streams", "Sizes")
    def sizes(request, context):
        for size in request.split():
            yield bytes(int(size))

    @worker.method("test.Streams", "Endless")
    def endless(request, context):
        try:
            while True:
                yield bytes(10_000)
                worker.state["sent"] += 1
        finally:
            worker.state["closed"].set()

    @worker.method("test.Streams", "Quiet")
    def quiet(request, context):
        yield b"before"
        if context.wait(float(request)):
            yield b"after"

    @worker.method("test.Streams", "Break")
    def break_(request, context):
        yield b"one"
        raise zex.Error(Code.DATA_LOSS, "the rest is gone", b"details")

    @worker.method("test.Streams", "Unary")
    def unary(request, context):
        return b"only"

    with serving(mesh, client, worker):
        yield worker


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_a_stream_arrives_whole_and_in_order(client, streams, count):
    got = client.stream("test.Streams", "Count", str(count).encode())
    assert list(got) == [str(number).encode() for number in range(count)]


def test_messages_of_every_size(client, streams):
    sizes = [0, 1, 65_531, 65_532, 65_536, 0, 3_000_000, 16 << 20, 5]
    request = " ".join(map(str, sizes)).encode()
    assert [len(message) for message in client.stream("test.Streams", "Sizes", request)] == sizes


def test_a_slow_reader_slows_the_worker_and_nobody_else(client, streams):
    with client.stream("test.Streams", "Endless", b"", 20) as stream:
        next(stream)
        count = streams.state["sent"]
        # Until it stands still: the credit is 1 MiB, and some more is buffered at both ends.
        while True:
            time.sleep(0.3)
            if streams.state["sent"] == count:
                break
            count = streams.state["sent"]
        assert count * 10_000 <= 3 << 20
        assert client.call("test.Streams", "Unary") == b"only"
        for _ in range(count + 200):
            assert len(next(stream)) == 10_000
    assert streams.state["closed"].wait(5), "its handler was not told that nobody reads any more"


def test_a_quiet_stream_lives(client, streams):
    # Longer than the silence after which a stream without beats is dead.
    assert list(client.stream("test.Streams", "Quiet", b"3")) == [b"before", b"after"]


def test_a_stream_ends_with_its_error_after_its_messages(client, streams):
    stream = client.stream("test.Streams", "Break")
    assert next(stream) == b"one"
    with pytest.raises(zex.Error) as caught:
        next(stream)
    assert (caught.value.code, caught.value.details) == (Code.DATA_LOSS, b"details")


def test_a_stream_ends_with_its_deadline(client, streams):
    stream = client.stream("test.Streams", "Quiet", b"10", 0.5)
    assert next(stream) == b"before"
    assert code_of(next, stream) == Code.DEADLINE_EXCEEDED


def test_unary_and_stream_by_the_wrong_call(client, streams):
    assert list(client.stream("test.Streams", "Unary")) == [b"only"]
    assert code_of(client.call, "test.Streams", "Count", b"1") == Code.INVALID_ARGUMENT
    assert code_of(list, client.stream("test.Streams", "Missing")) == Code.UNIMPLEMENTED
    assert code_of(list, client.stream("test.Nobody", "M")) == Code.UNAVAILABLE


# ── both dialects, reflection, garbage ──────────────────────────────────────────────────────


def test_the_small_ez_client_and_worker(mesh):
    def handle(body):
        if body[0] == b"/crash":
            raise ValueError("a mistake")
        return [b"OK", *body]

    with zex.EzWorker("EZ_SMALL", handle, mesh.worker_pipe), zex.EzClient(mesh.in_pipe) as client:
        until(lambda: client.request("EZ_SMALL", b"/up")[0] == b"OK", 5, "it is not registered")
        assert client.request("EZ_SMALL", b"/echo", b"hello") == [b"OK", b"/echo", b"hello"]
        assert client.request("EZ_SMALL", b"/crash") == [b"ERR", b"worker exception"]
        assert client.request("EZ_NOBODY", b"/echo")[0] == b"ERR"


def test_an_ez_client_calls_a_native_method(mesh, client, new_worker):
    worker = new_worker()
    worker.method("test.Mixed", "Echo")(lambda request, context: request)
    with serving(mesh, client, worker), zex.EzClient(mesh.in_pipe) as ez:
        assert ez.request("test.Mixed/Echo", b"hello") == [b"OK", b"hello"]
        err, text = ez.request("test.Mixed/Missing", b"hello")
        assert err == b"ERR" and text.startswith(b"UNIMPLEMENTED: ")


def test_the_mesh_describes_itself(client):
    reflection = Reflection(client)
    brokers = reflection.call("zex.Mesh", "Brokers").brokers
    assert len(brokers) == 2 and all(broker.ready for broker in brokers)
    with pytest.raises(zex.Error, match="Brokers, Services, Workers"):
        reflection.call("zex.Mesh", "Nothing")
    with pytest.raises(zex.Error, match="zex.Mesh/Brokers"):
        reflection.call("zex.Mesh", "Brokers", {"no": "such field"})


def test_a_worker_hands_out_its_descriptors(mesh, client, new_worker):
    descriptors = client.call("zex.Mesh", "zex.Descriptors")
    worker = new_worker()
    worker.describe("zex.Pretender", descriptors)
    with serving(mesh, client, worker):
        assert client.call("zex.Pretender", "zex.Descriptors") == descriptors
        with pytest.raises(zex.Error, match="do not have it"):
            Reflection(client).service("zex.Pretender")


def descriptors_of(*methods, reply="Old"):
    """The descriptors of a service with these methods, from an empty message to `reply`."""
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="test", syntax="proto3")
    for number, name in enumerate(["Empty", "Old", "New"]):
        kind = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
        field = {"name": name.lower(), "number": number + 1, "type": kind, "label": 1}
        file.message_type.add(name=name).field.add(**field)
    service = file.service.add(name="Redeployed")
    for method in methods:
        service.method.add(name=method, input_type=".test.Empty", output_type=f".test.{reply}")
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


def test_a_redeployed_service_is_seen(mesh, client, new_worker):
    worker, service = new_worker(), "test.Redeployed"
    worker.serve(service, lambda method, request, context: b"\x12\x01x")
    worker.describe(service, descriptors_of("First", "Gone"))
    reflection = Reflection(client)
    with serving(mesh, client, worker):
        assert reflection.call(service, "First").old == "x"
        worker.describe(service, descriptors_of("First", "Second"))
        # A method that the caller knows of, and what was fetched does not.
        assert reflection.call(service, "Second").old == "x"
        worker.describe(service, descriptors_of("First", reply="New"))

        @worker.method(service, "First")
        def another(request, context):
            if not context.streams:
                raise zex.Error(Code.UNIMPLEMENTED, "it is another by now")
            return iter([b"\xff"])  # No message at all.

        for begin in (reflection.call, lambda *call: list(reflection.stream(*call))):
            with pytest.raises((zex.Error, DecodeError)):
                begin(service, "First")
            assert reflection._services == {}
            assert reflection.method(service, "First").output_type.name == "New"


def test_the_first_call_waits_for_its_worker_if_asked(mesh, client, new_worker):
    worker = new_worker()
    worker.serve("test.Redeployed", lambda method, request, context: b"\x12\x01x")
    worker.describe("test.Redeployed", descriptors_of("First"))
    reflection = Reflection(client)
    assert code_of(reflection.call, "test.Redeployed", "First") == Code.UNAVAILABLE
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(reflection.call, "test.Redeployed", "First", None, 20, wait=True)
        with worker:
            assert call.result(20).old == "x"


def test_protobuf_messages_go_in_and_come_out(mesh, client, new_worker):
    """Any class with SerializeToString and FromString will do, so no generated code is needed."""

    class Text:
        def __init__(self, text):
            self.text = text

        def SerializeToString(self):
            return self.text.encode()

        @classmethod
        def FromString(cls, data):
            return cls(data.decode())

    worker = new_worker()

    @worker.method("test.Typed", "Upper", Text)
    def upper(request, context):
        return Text(request.text.upper())

    with serving(mesh, client, worker):
        assert client.call("test.Typed", "Upper", Text("zex"), reply_type=Text).text == "ZEX"
        assert code_of(client.call, "test.Typed", "Upper", b"\xff") == Code.INVALID_ARGUMENT
        (reply,) = client.stream("test.Typed", "Upper", Text("a"), reply_type=Text)
        assert reply.text == "A"
