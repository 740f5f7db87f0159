"""Brokers are killed and pipes restarted while calls go on: no call of the client fails."""

import threading
from collections import Counter

import pytest
from mesh import Mesh, serving, until

import zex
from zex import Code
from zex.reflection import Reflection

#: After any fault the assigned counts are right within this time.
HEALED_S = 3.0
#: How long calls go on around a fault: until so many were answered after it.
ANSWERS = 300


@pytest.fixture
def apart():
    with Mesh(apart=True) as mesh:
        yield mesh


class Load:
    """Callers that go on until they are stopped, and what became of their calls."""

    def __init__(self, client, callers=16):
        self._client, self._over = client, threading.Event()
        self.answered, self.failed = 0, []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._go_on, args=(n,)) for n in range(callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(40)

    def more(self, count=ANSWERS):
        """Waits for so many answers more, or for the first failure."""
        goal = self.answered + count
        until(lambda: self.failed or self.answered >= goal, 30, "no answers come any more")

    def _go_on(self, number):
        turn = 0
        while not self._over.is_set():
            turn += 1
            body = f"{number}-{turn}".encode()
            try:
                reply = self._client.call("test.Load", "Echo", body, 20)
                assert reply == body
                with self._lock:
                    self.answered += 1
            except Exception as error:
                with self._lock:
                    self.failed.append(error)


@pytest.fixture
def workers(apart):
    """Three workers that say which bodies they ran."""
    runs, lock = Counter(), threading.Lock()
    made = []
    for number in range(3):
        worker = zex.Worker(apart.worker_pipe, capacity=8, name=f"load-{number}")

        @worker.method("test.Load", "Echo")
        def echo(request, context):
            with lock:
                runs[request] += 1
            context.wait(0.01)
            return request

        made.append(worker)
    with zex.Client(apart.in_pipe) as client, serving(apart, client, *made):
        yield runs


def counts_are_right(mesh, client):
    infos = mesh.workers(client)
    return len(infos) == 3 and all(i.assigned == i.in_flight == 0 for i in infos.values())


@pytest.mark.parametrize("victim", ["broker-1", "broker-2"])
def test_a_broker_killed_under_load_loses_no_call(apart, workers, victim):
    with zex.Client(apart.in_pipe) as client:
        with Load(client) as load:
            load.more()
            apart.kill(victim)
            load.more(2 * ANSWERS)
        assert load.failed == []
        # Each call was resent under its key at most: none ran twice.
        assert set(workers.values()) == {1}
        until(lambda: counts_are_right(apart, client), HEALED_S, "counts are still wrong")


def test_a_broker_that_comes_back_takes_part(apart, workers):
    with zex.Client(apart.in_pipe) as client:
        with Load(client) as load:
            load.more()
            apart.kill("broker-1")
            load.more()
            apart.start("broker-1", "broker", "--name", "broker-1")

            def two_ready():
                return len([b for b in apart.brokers(client) if b.ready]) == 2

            until(two_ready, 15, "it is not ready")
            load.more()
        assert load.failed == []
        assert set(workers.values()) == {1}


@pytest.mark.parametrize("pipe", ["in", "worker", "state"])
def test_a_pipe_restarted_under_load_loses_no_call(apart, workers, pipe):
    with zex.Client(apart.in_pipe) as client:
        with Load(client) as load:
            load.more()
            apart.kill(f"{pipe}-pipe")
            apart.start(f"{pipe}-pipe", "pipe", pipe)
            load.more(2 * ANSWERS)
        assert load.failed == []
        until(lambda: counts_are_right(apart, client), HEALED_S, "counts are still wrong")


def test_a_stream_whose_broker_dies_ends_and_does_not_hang(apart):
    worker = zex.Worker(apart.worker_pipe, name="streamer")

    @worker.method("test.Stream", "Endless")
    def endless(request, context):
        while context.wait(0.01):
            yield b"x"

    with zex.Client(apart.in_pipe) as client, serving(apart, client, worker):
        stream = client.stream("test.Stream", "Endless", b"", 10)
        assert next(stream) == b"x"
        services = Reflection(client).call("zex.Mesh", "Services").services
        (home,) = [service.home for service in services if service.name == "test.Stream"]
        apart.kill(home)
        with pytest.raises(zex.Error) as caught:
            for _ in stream:
                pass
        assert caught.value.code == Code.UNAVAILABLE
