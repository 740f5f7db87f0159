"""A real mesh for the tests: the programs of the project, on free ports of this machine.

    Mesh()                   `zex up`: pipes and brokers in one process
    Mesh(apart=True)         a process for each pipe and each broker, to be killed one by one

The program is `target/debug/zex`, or what ZEX_BIN names. How it is started is said here and
nowhere else.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zex
from zex.reflection import Reflection

ROOT = Path(__file__).resolve().parents[3]
#: How long the mesh may take to come up on a busy machine.
UP_S = 30.0
#: How long a program may take to stop in order.
STOP_S = 20.0


def program():
    """The path of `zex`; an error that says what to do if it is not there."""
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = Path(os.environ.get("ZEX_BIN", Path(target) / "debug" / "zex"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: build it with `cargo build -p zex`, or name another by ZEX_BIN"
        )
    return str(path)


def until(condition, within_s, what):
    """Waits for a state: the first true value of `condition()`; `what` is missing otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {within_s:g} s: {what}"
        time.sleep(0.02)


def free_ports(count):
    """Ports that nothing listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Mesh:
    """The processes of a mesh, for as long as the `with` lasts."""

    def __init__(self, apart=False, brokers=2):
        names = ("in-pipe", "in-pipe-broker", "state-pipe", "state-pipe-publish")
        names += ("worker-pipe", "worker-pipe-broker", "gateway")
        self._ports = dict(zip(names, free_ports(len(names))))
        self._apart, self._brokers = apart, brokers
        self.in_pipe = f"tcp://127.0.0.1:{self._ports['in-pipe']}"
        self.worker_pipe = f"tcp://127.0.0.1:{self._ports['worker-pipe']}"
        self.gateway = f"127.0.0.1:{self._ports['gateway']}"
        #: Running programs, by name.
        self.processes = {}
        self._folder = tempfile.TemporaryDirectory(prefix="zex-test-")

    def __enter__(self):
        try:
            if self._apart:
                for pipe in ("in", "state", "worker"):
                    self.start(f"{pipe}-pipe", "pipe", pipe)
                for number in range(1, self._brokers + 1):
                    self.start(f"broker-{number}", "broker", "--name", f"broker-{number}")
            else:
                data = str(Path(self._folder.name) / "data")
                self.start("up", "up", "--brokers", str(self._brokers), "--data", data)
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_):
        self._stop()

    def start(self, name, *arguments):
        """Starts one program, with this mesh's ports in its environment."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ZEX_")}
        for port, number in self._ports.items():
            environment[f"ZEX_{port.upper().replace('-', '_')}_PORT"] = str(number)
        environment["ZEX_LOG"] = "debug"
        with open(self._log(name), "ab") as log:
            self.processes[name] = subprocess.Popen(
                [program(), *arguments], env=environment, stdout=log, stderr=log
            )

    def kill(self, name):
        """SIGKILL, as `kill -9`."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(STOP_S)

    def brokers(self, client):
        """What `zex.Mesh` says of the brokers."""
        return Reflection(client).call("zex.Mesh", "Brokers").brokers

    def workers(self, client):
        """What `zex.Mesh` says of the workers, by name."""
        return {w.name: w for w in Reflection(client).call("zex.Mesh", "Workers").workers}

    def log_of(self, name):
        """What a program has logged."""
        return self._log(name).read_text(errors="replace")

    def _log(self, name):
        return Path(self._folder.name) / f"{name}.log"

    def _wait_until_ready(self):
        def ready():
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log_of(name)}"
            try:
                brokers = self.brokers(client)
            except zex.Error:
                return False
            return len([b for b in brokers if b.ready]) == self._brokers

        with zex.Client(self.in_pipe) as client:
            until(ready, UP_S, f"{self._brokers} brokers are not ready")

    def _stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_S)
                raise AssertionError(f"{name} did not stop:\n{self.log_of(name)}") from None
        self._folder.cleanup()


@contextmanager
def serving(mesh, client, *workers):
    """Workers of the mesh, started, and known to the mesh by their services."""
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        names = {worker.name for worker in workers}
        until(lambda: names <= set(mesh.workers(client)), 10, f"{names} are not registered")
        yield
