"""Fixtures: one mesh for all tests that do no harm to it, and a client of it."""

import threading

import pytest
from mesh import Mesh, serving

import zex


@pytest.fixture(scope="session")
def mesh():
    with Mesh() as mesh:
        yield mesh


@pytest.fixture
def client(mesh):
    with zex.Client(mesh.in_pipe) as client:
        yield client


@pytest.fixture
def native_traffic(mesh, client):
    """Native calls that go on while a test does something else; each has to be answered."""
    worker = zex.Worker(mesh.worker_pipe, name="native-traffic")
    worker.method("test.Native", "Echo")(lambda request, context: request)
    over = threading.Event()
    answered, failed = [], []

    def go_on():
        number = 0
        while not over.is_set():
            number += 1
            try:
                reply = client.call("test.Native", "Echo", str(number).encode(), 10)
                assert reply == str(number).encode()
                answered.append(number)
            except Exception as error:
                failed.append(error)

    with serving(mesh, client, worker):
        thread = threading.Thread(target=go_on)
        thread.start()
        yield answered
        over.set()
        thread.join(20)
    assert answered
    assert not failed
