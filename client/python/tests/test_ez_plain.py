"""Old clients and workers: plain pyzmq and literal frames, nothing of ours, through a real mesh,
while native ones talk through it too.

    client DEALER ── "" 02 id service body… ──▶ mesh ── "" address id body… ──▶ worker DEALER
                  ◀── "" id body… ───────────── mesh ◀── "" 01 02 address "" id body… ──
"""

import time
import uuid

import pytest
import zmq

#: An answer that is due at once; generous for a busy machine.
SOON_MS = 5_000
#: How long to listen for what must not come.
QUIET_MS = 300

pytestmark = pytest.mark.usefixtures("native_traffic")


@pytest.fixture
def dealer():
    """Makes connected DEALERs, without routing ids of their own, as the old peers did."""
    context = zmq.Context()

    def make(endpoint):
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(endpoint)
        return socket

    yield make
    context.destroy(linger=0)


@pytest.fixture
def new_client(mesh, dealer):
    return lambda: dealer(mesh.in_pipe)


@pytest.fixture
def new_worker(mesh, dealer, new_client):
    """Makes workers that have beaten once and are known to the mesh."""

    def make(service, others=()):
        worker = dealer(mesh.worker_pipe)
        worker.send_multipart([b"", b"\x01", b"\x01", service])
        probe = new_client()
        deadline = time.monotonic() + SOON_MS / 1_000
        # Until the beat is in, the mesh says ERR; whoever else serves it answers for itself.
        while True:
            assert time.monotonic() < deadline, "the beat was not noticed"
            id = uuid.uuid4().bytes
            probe.send_multipart([b"", b"\x02", id, service, b"are you there?"])
            while not probe.poll(20):
                assert time.monotonic() < deadline, "neither work nor an answer"
                for other in others:
                    answer_probe(other)
                if answer_probe(worker):
                    assert receive(probe) == [b"", id, b"OK", b"here"]
                    return worker
            answer = receive(probe)
            assert answer[2:3] == [b"ERR"] or others, answer

    def answer_probe(worker):
        if not worker.poll(0):
            return False
        _, address, id, *body = worker.recv_multipart()
        assert body == [b"are you there?"]
        worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", b"here"])
        return True

    return make


def receive(socket, within_ms=SOON_MS):
    assert socket.poll(within_ms), "nothing came"
    return socket.recv_multipart()


def service_name():
    return b"TEST_SERVICE_" + uuid.uuid4().hex[:8].encode()


def test_a_request_and_its_answer_frame_by_frame(new_client, new_worker):
    service, id = service_name(), uuid.uuid4().bytes
    worker, client = new_worker(service), new_client()
    client.send_multipart([b"", b"\x02", id, service, b"/echo", b"hello"])
    empty, address, got_id, *body = receive(worker)
    assert (empty, got_id, body) == (b"", id, [b"/echo", b"hello"])
    assert address
    worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", b"hello"])
    assert receive(client) == [b"", id, b"OK", b"hello"]


@pytest.mark.parametrize(
    "body", [[], [b""], [b"one"], [b"", b"two", b""], [bytes(100_000)] * 3, [b"x"] * 20]
)
def test_bodies_pass_untouched(new_client, new_worker, body):
    service, id = service_name(), uuid.uuid4().bytes
    worker, client = new_worker(service), new_client()
    client.send_multipart([b"", b"\x02", id, service, *body])
    _, address, _, *got = receive(worker)
    assert got == body
    worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, *body])
    assert receive(client) == [b"", id, *body]


def test_no_worker_is_an_answer_too(new_client):
    client = new_client()
    # A broker that has just started waits for one round of beats before it says so.
    for within_ms in (SOON_MS, 1_000):
        client.send_multipart([b"", b"\x02", b"17.5", b"NOBODY_SERVES_THIS", b"/echo", b"hello"])
        empty, id, err, text = receive(client, within_ms)
        assert (empty, id, err) == (b"", b"17.5", b"ERR")
        assert b"NOBODY_SERVES_THIS" in text


def test_a_worker_that_leaves_is_gone_at_once(new_client, new_worker):
    service = service_name()
    worker, client = new_worker(service), new_client()
    worker.close()
    # It has beaten just now: its connection's end is noticed, not the silence of 9 s.
    deadline = time.monotonic() + 3
    answer = None
    while answer is None:
        assert time.monotonic() < deadline, "requests still wait for a worker that is gone"
        id = uuid.uuid4().bytes
        client.send_multipart([b"", b"\x02", id, service, b"x"])
        if client.poll(100):
            answer = client.recv_multipart()
    assert answer[2] == b"ERR"


def test_many_in_hand_answered_out_of_order(new_client, new_worker):
    service = service_name()
    worker, client = new_worker(service), new_client()
    ids = [uuid.uuid4().bytes for _ in range(50)]
    for id in ids:
        client.send_multipart([b"", b"\x02", id, service, id[:3]])
    works = [receive(worker) for _ in ids]
    assert {work[2] for work in works} == set(ids)
    for _, address, id, body in reversed(works):
        worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", body])
    answers = [receive(client) for _ in ids]
    assert [answer[1] for answer in answers] == [work[2] for work in reversed(works)]
    assert all(answer[3] == answer[1][:3] for answer in answers)


def test_ids_of_four_bytes_may_be_anybody_s(new_client, new_worker):
    service, id = service_name(), b"1234"
    worker, one, two = new_worker(service), new_client(), new_client()
    second = new_worker(service, others=[worker])
    one.send_multipart([b"", b"\x02", id, service, b"from one"])
    first_work = None
    for socket in (worker, second):
        if socket.poll(QUIET_MS):
            first_work, other = (socket, socket.recv_multipart()), socket
            other = second if socket is worker else worker
    assert first_work is not None, "nothing came"
    # The same id and body while the first runs is a request of its own, for the other worker.
    two.send_multipart([b"", b"\x02", id, service, b"from two"])
    socket, (_, address_one, _, body_one) = first_work
    _, address_two, id_two, body_two = receive(other)
    assert (id_two, body_one, body_two) == (id, b"from one", b"from two")
    other.send_multipart([b"", b"\x01", b"\x02", address_two, b"", id, b"OK", b"to two"])
    socket.send_multipart([b"", b"\x01", b"\x02", address_one, b"", id, b"OK", b"to one"])
    assert receive(one) == [b"", id, b"OK", b"to one"]
    assert receive(two) == [b"", id, b"OK", b"to two"]
    assert not one.poll(QUIET_MS) and not two.poll(0)


def test_a_short_id_may_be_used_again_after_its_answer(new_client, new_worker):
    service, id = service_name(), b"17.5"
    worker, client = new_worker(service), new_client()
    for turn in (b"first", b"second"):
        client.send_multipart([b"", b"\x02", id, service, turn])
        _, address, _, body = receive(worker)
        assert body == turn
        worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", turn])
        assert receive(client) == [b"", id, b"OK", turn]


def test_a_long_id_sent_again_joins_what_runs(new_client, new_worker):
    service, id = service_name(), uuid.uuid4().bytes
    worker, client, again = new_worker(service), new_client(), new_client()
    client.send_multipart([b"", b"\x02", id, service, b"/slow", b""])
    _, address, _, *_ = receive(worker)
    # By the same connection, and then, as some old clients do, by a new one.
    client.send_multipart([b"", b"\x02", id, service, b"/slow", b""])
    assert not worker.poll(QUIET_MS), "the worker got the same request twice"
    again.send_multipart([b"", b"\x02", id, service, b"/slow", b""])
    assert not worker.poll(QUIET_MS), "the worker got the same request a third time"
    worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", b"done"])
    assert receive(again) == [b"", id, b"OK", b"done"]
    # Some old clients die on an answer that they no longer expect.
    client_got = [client.recv_multipart()] if client.poll(QUIET_MS) else []
    assert client_got in ([], [[b"", id, b"OK", b"done"]])
    assert not client.poll(QUIET_MS) and not again.poll(0)


def test_an_answer_after_the_worker_was_given_up_is_delivered(new_client, new_worker):
    """Some old workers stop beating while they are busy: 9 s later they get no work, but what
    they had is still theirs to answer."""
    service, id = service_name(), b"late"
    worker, client = new_worker(service), new_client()
    client.send_multipart([b"", b"\x02", id, service, b"take your time"])
    _, address, _, _ = receive(worker)
    # Wait for the state, not for a time: it is given up when a request does not come to it.
    probe, deadline = new_client(), time.monotonic() + 15
    while True:
        assert time.monotonic() < deadline, "the silent worker still gets work"
        probe.send_multipart([b"", b"\x02", uuid.uuid4().bytes, service, b"are you there?"])
        if not worker.poll(1_000):
            break
        worker.recv_multipart()
        time.sleep(0.1)  # A pause between two looks: it takes 1,000 requests at most.
    assert time.monotonic() > deadline - 7, "it was given up before 9 s had passed"
    assert not client.poll(0), "the answer was given up"
    worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", b"at last"])
    assert receive(client) == [b"", id, b"OK", b"at last"]


def test_a_native_method_by_its_name(new_client):
    client, id = new_client(), uuid.uuid4().bytes
    client.send_multipart([b"", b"\x02", id, b"test.Native/Echo", b"hello"])
    assert receive(client) == [b"", id, b"OK", b"hello"]
    client.send_multipart([b"", b"\x02", id, b"test.Native/Nothing", b"hello"])
    empty, got_id, err, text = receive(client)
    assert (empty, got_id, err) == (b"", id, b"ERR")
    assert text.startswith(b"UNIMPLEMENTED: ")


def test_garbage_harms_nobody_else(new_client, new_worker, dealer, mesh):
    service, id = service_name(), uuid.uuid4().bytes
    worker, client = new_worker(service), new_client()
    for endpoint in (mesh.in_pipe, mesh.worker_pipe):
        vandal = dealer(endpoint)
        for garbage in (
            [b""],
            [b"", b"\x07"],
            [b"\x02", id, service],
            [b"", b"\x01", b"\x02", b"no address", b"", id, b"OK"],
            [b"", b"\x01", b"\x02", b"", b"", id, b"OK"],
            [b"", b"\x02", b"", b"", b""],
            [b"", b"\x02", id, b"x" * 300, b""],
            [b"", b"\x02", bytes(1 << 20), service, b""],
            [b"ZX"],
            [b"ZX\x01\x01" + bytes(44)],
            [b"ZX\x01\x01\xff\xff" + bytes(2) + b"\xff" * 4 + bytes(36), b"x", b"y"],
            [b"ZX\x02\x15" + b"\xff" * 60],
            [b"x"] * 100,
        ):
            vandal.send_multipart(garbage)
    client.send_multipart([b"", b"\x02", id, service, b"still there?"])
    _, address, _, _ = receive(worker)
    worker.send_multipart([b"", b"\x01", b"\x02", address, b"", id, b"OK", b"yes"])
    assert receive(client) == [b"", id, b"OK", b"yes"]
