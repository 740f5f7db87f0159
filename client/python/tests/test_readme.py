"""The script of the project's README: it distributes users to groups by recorded calls of stubs that
protoc has made."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grpc_tools import protoc
from mesh import ROOT, free_ports, program, until

from zex.reflection import Reflection

USERS = 20_000
PROTOS = ROOT / "examples" / "users-groups" / "proto"
#: How long the whole run may take: some hundred durable steps a second, of a debug build on a busy machine.
RUN_S = 300.0
UP_S = 30.0


@pytest.fixture
def stubs(tmp_path):
    """What protoc makes of the example's protos."""
    protos = [str(path) for path in PROTOS.rglob("*.proto")]
    made = [f"--{kind}={tmp_path}" for kind in ("python_out", "grpc_python_out")]
    assert protoc.main(["protoc", f"-I{PROTOS}", *made, *protos]) == 0
    return tmp_path


@pytest.fixture
def services(mesh, client, tmp_path):
    """Users and Groups of the example, and their adapters."""
    ports, running = free_ports(2), []
    commands = [["users", "--count", str(USERS)], ["groups", "--ledger", str(tmp_path / "ledger")]]
    for port, (name, *arguments) in zip(ports, commands):
        path = Path(program()).parent / name
        assert path.is_file(), f"{path} is not there: `cargo build -p users-groups` builds it"
        running.append(subprocess.Popen([path, "--port", str(port), *arguments]))
        mesh.start(f"adapter-{port}", "adapter", f"http://127.0.0.1:{port}", "--capacity", "64")
    names = {"example.v1.Users", "example.v1.Groups"}
    known = lambda: {name for w in mesh.workers(client).values() for name in w.services}  # noqa: E731
    until(lambda: names <= known(), UP_S, f"{names} are not attached")
    yield
    for port in ports:
        mesh.processes.pop(f"adapter-{port}").terminate()
    for process in running:
        process.terminate()
        process.wait(UP_S)
    until(lambda: not names & known(), UP_S, f"{names} stay")


def test_the_readme_s_script_distributes_20_000_users(mesh, client, services, stubs):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    [script] = [block for block in blocks if "mesh.record(" in block]
    path = os.pathsep.join([str(stubs), str(ROOT / "client" / "python")])
    where = {
        "PYTHONPATH": path,
        "ZEX_IN_PIPE": mesh.in_pipe,
        "ZEX_GATEWAY_PORT": mesh.gateway.split(":")[1],
    }
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **where},
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"spread \S+ succeeded in .* s \(users_list 20000, groups_add 20000\)\n", done.stdout
    ), done
    print(f"{USERS} users in {time.monotonic() - begun:.1f} s: {done.stdout}")
    # The service itself says who is where.
    reflection = Reflection(client)
    members = {}
    for member in reflection.stream("example.v1.Groups", "Members", deadline_s=60):
        assert member.user_id not in members and len(member.groups) == 1
        members[member.user_id] = member.groups[0]
    users = reflection.stream("example.v1.Users", "List", deadline_s=60)
    assert members == {user.id: f"{user.plan}-{user.country}" for user in users}
    assert len(members) == USERS
