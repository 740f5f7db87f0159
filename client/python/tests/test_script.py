"""`client/test_client.py` against the example services and their adapters, as a user runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mesh import ROOT, free_ports, program, until

from zex.reflection import Reflection

SCRIPT = ROOT / "client" / "test_client.py"
#: How long one run of the script may take.
RUN_S = 60.0
#: How long servers and adapters may take to be known to the mesh.
UP_S = 30.0


@pytest.fixture(scope="module")
def services(mesh, tmp_path_factory):
    """One Users process, two Groups processes with one ledger, and an adapter beside each."""
    folder = tmp_path_factory.mktemp("services")
    ports = free_ports(3)
    ledger = str(folder / "ledger")
    servers = [["users"], ["groups", "--ledger", ledger, "--name", "groups-1"]]
    servers += [["groups", "--ledger", ledger, "--name", "groups-2"]]
    running = []
    for port, (name, *arguments) in zip(ports, servers):
        path = Path(program()).parent / name
        assert path.is_file(), f"{path} is not there: `cargo build -p users-groups` builds it"
        running.append(subprocess.Popen([path, "--port", str(port), *arguments]))
        mesh.start(f"adapter-{port}", "adapter", f"http://127.0.0.1:{port}")
    yield ["example.v1.Users", "example.v1.Groups"]
    for port in ports:
        mesh.processes.pop(f"adapter-{port}").terminate()
    for process in running:
        process.terminate()
        process.wait(RUN_S)


@pytest.fixture
def attached(services, client):
    """Waits until the mesh knows them all."""

    def known():
        infos = Reflection(client).call("zex.Mesh", "Services").services
        workers = {info.name: info.workers for info in infos}
        return [workers.get(service, 0) for service in services] == [1, 2]

    until(known, UP_S, f"{services} are not attached")


def run(mesh, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--in-pipe", mesh.in_pipe, *arguments],
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip


def test_no_seconds_are_no_calls(mesh, attached):
    done = run(mesh, "--seconds", "0")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "0 answered, 0 failed" in done.stderr


def test_several_hosts_of_in_pipes_may_be_named():
    hosts = {"ZEX_IN_PIPE_HOST": "127.0.0.1,127.0.0.2", "ZEX_IN_PIPE_PORT": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "ZEX_IN_PIPE"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--deadline", "1"], env={**environment, **hosts},
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert "no in pipe answers at tcp://127.0.0.1:1, tcp://127.0.0.2:1" in done.stderr


def test_it_prints_an_answer_a_line(mesh, attached):
    done = run(mesh, "--count", "20", "--parallel", "4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 40
    form = r"example\.v1\.(Users/Get id \d+|Groups/Add user \d+ to \w+) -> .+ \(\d+\.\d ms\)"
    assert all(re.fullmatch(form, line) for line in lines), done.stdout
    assert "40 answered, 0 failed" in done.stderr


def test_it_goes_on_until_it_is_stopped(mesh, attached):
    arguments = [sys.executable, SCRIPT, "--until-stopped"]
    environment = {**os.environ, "ZEX_IN_PIPE": mesh.in_pipe}

    def hear_ctrl_c():
        # Who is run in the background ignores it, and so would all that he starts.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    ) as script:
        for _ in range(50):
            assert " -> " in script.stdout.readline()
        script.send_signal(signal.SIGINT)
        rest, _ = script.communicate(timeout=RUN_S)
    assert script.returncode == 0, rest


def test_it_fails_in_words_without_a_mesh():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--in-pipe", "tcp://127.0.0.1:1", "--deadline", "2"],
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no in pipe answers at tcp://127.0.0.1:1" in done.stderr and done.stderr.count("\n") == 1
