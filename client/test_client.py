#!/usr/bin/env python3
"""Sends some requests to a mesh and prints the answers, one line each.

    client/test_client.py ── Users/Get ──▶ mesh ──▶ whichever adapter has the fewest tasks
                          ── Groups/Add ─▶

Talks to the mesh of docker-compose, or of `zex demo --keep`, from this machine: asks the Users
service for a user, puts the user into a group by age with the Groups service, and so on. The
messages are built from the descriptors that the services hand out through the mesh: no generated
code. Exits 1 if any call failed, 2 if it cannot begin.

    pip install pyzmq msgpack protobuf
    client/test_client.py --count 100
    client/test_client.py --until-stopped        # and now kill a broker
"""

import argparse
import os
import sys
import threading
import time
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "python"))

try:
    import zex
    from zex.reflection import Reflection
except ImportError as error:
    print(f"{error}; try: pip install pyzmq msgpack protobuf", file=sys.stderr)
    sys.exit(2)

USERS, GROUPS = "example.v1.Users", "example.v1.Groups"
#: Every mesh of the examples has so many users at least.
KNOWN_USERS = 100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    hosts = os.environ.get("ZEX_IN_PIPE_HOST", "127.0.0.1").split(",")
    port = os.environ.get("ZEX_IN_PIPE_PORT", "9000")
    parser.add_argument(
        "--in-pipe",
        default=os.environ.get("ZEX_IN_PIPE", ",".join(f"tcp://{host}:{port}" for host in hosts)),
        help="in pipes, a comma between several (ZEX_IN_PIPE; default: %(default)s)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--count", type=int, default=10, help="users to ask for (%(default)s)")
    length.add_argument("--seconds", type=float, help="go on for so long instead")
    length.add_argument("--until-stopped", action="store_true", help="go on until Ctrl-C instead")
    parser.add_argument("--parallel", type=int, default=1, help="at a time (%(default)s)")
    parser.add_argument("--deadline", type=float, default=10.0, help="of a call, s (%(default)s)")
    options = parser.parse_args()
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    if options.count < 0 or (options.seconds or 0) < 0:
        parser.error("--count and --seconds must not be below 0")
    return options


def group_of(user):
    """As the demo's pipeline distributes them."""
    return "minors" if user.age < 18 else "seniors" if user.age >= 65 else "adults"


class Script:
    """The calls, their lines, and how many of them failed."""

    def __init__(self, client, options):
        self._reflection = Reflection(client)
        self._options = options
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # Set by the last thread. `join` will not do: a thread whose join was interrupted by Ctrl-C
        # counts as ended (CPython 3.11), though it still waits for an answer.
        self._over = threading.Event()
        self._running = options.parallel
        timed = options.seconds is not None
        self._end = time.monotonic() + options.seconds if timed else None
        self.answered = self.failed = 0

    def run(self):
        """Goes on until it is done or Ctrl-C."""
        for service in (USERS, GROUPS):
            self._reflection.service(service, self._options.deadline, wait=True)
        for _ in range(self._options.parallel):
            threading.Thread(target=self._go_on, daemon=True).start()
        try:
            while not self._over.wait(0.2):
                pass
        except KeyboardInterrupt:
            self._stop.set()
            self._over.wait(2 * self._options.deadline)

    def _go_on(self):
        try:
            while (number := self._next()) is not None:
                user_id = (number - 1) % KNOWN_USERS + 1
                user = self._call(USERS, "Get", {"id": user_id}, f"id {user_id}")
                if user is not None:
                    request = {"userId": user.id, "group": group_of(user)}
                    self._call(GROUPS, "Add", request, f"user {user.id} to {request['group']}")
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._over.set()

    def _next(self):
        with self._lock:
            number = next(self._numbers)
        options = self._options
        if self._end is not None:
            wanted = time.monotonic() < self._end
        else:
            wanted = options.until_stopped or number <= options.count
        return number if wanted and not self._stop.is_set() else None

    def _call(self, service, method, request, what):
        began, reply = time.monotonic(), None
        try:
            reply = self._reflection.call(service, method, request, self._options.deadline)
            outcome = " ".join(str(reply).split())
        except zex.Error as error:
            outcome = f"FAILED {error}"
        took_ms = (time.monotonic() - began) * 1_000
        with self._lock:
            self.answered += reply is not None
            self.failed += reply is None
            print(f"{service}/{method} {what} -> {outcome} ({took_ms:.1f} ms)", flush=True)
        return reply


def main():
    options = arguments()
    try:
        with zex.Client(options.in_pipe) as client:
            script = Script(client, options)
            script.run()
    except (zex.Error, ValueError) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, zex.Error) else 2
    print(f"{script.answered} answered, {script.failed} failed", file=sys.stderr)
    return 1 if script.failed else 0


if __name__ == "__main__":
    sys.exit(main())
