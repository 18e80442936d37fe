"""Confinement is for good, so each test confines a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.udf import confine as module
from clickhouse_clip.udf.confine import kept_environment

#: Tries everything; prints what was refused.
PROGRAM = """
import json, os, resource, socket, subprocess, sys
from pathlib import Path
from clickhouse_clip.udf.confine import confine

own, other = Path(sys.argv[1]), Path(sys.argv[2])
(other / "file").write_text("x")
landlock = confine([own])

def unix_socket():
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(own)
        listener.bind("socket")

ways = {
    "write own": lambda: (own / "a").write_text("x"),
    "rename own": lambda: (own / "a").rename(own / "b"),
    "truncate own": lambda: os.truncate(own / "b", 0),
    "remove own": lambda: (own / "b").unlink(),
    "listen": unix_socket,
    "read": lambda: (other / "file").read_text(),
    "device": lambda: Path("/dev/null").write_text("x"),
    "write": lambda: (other / "file").write_text("y"),
    "truncate": lambda: os.truncate(other / "file", 0),
    "make": lambda: (other / "new").write_text("y"),
    "folder": lambda: (other / "folder").mkdir(),
    "link": lambda: (other / "link").symlink_to("/"),
    "remove": lambda: (other / "file").unlink(),
    "move out": lambda: ((own / "c").write_text(""), (own / "c").rename(other / "c")),
    "run": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "connect": lambda: socket.create_connection(("127.0.0.1", 1), 1),
    "serve": lambda: socket.create_server(("127.0.0.1", 0)),
    "signal": lambda: os.kill(os.getppid(), 0),
}
refused = []
for name, way in ways.items():
    try:
        way()
    except PermissionError:
        refused.append(name)
    except OSError as error:
        refused.append(f"{name}: {error}")
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "landlock": landlock,
    "refused": refused,
    "no_new_privs": int(status["NoNewPrivs"]),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
}))
"""


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("confined")
    for name in ("own", "other"):
        (folder / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "own"), str(folder / "other")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_no_rights_are_gained_and_no_core_is_left(confined: dict[str, Any]) -> None:
    assert confined["no_new_privs"] == 1
    assert max(confined["core"]) <= 1


def test_what_the_service_needs_still_works(confined: dict[str, Any]) -> None:
    needed = {"write own", "rename own", "truncate own", "remove own", "listen", "read", "device"}
    assert not needed & {name.partition(":")[0] for name in confined["refused"]}


def test_nothing_else_does(confined: dict[str, Any]) -> None:
    if not confined["landlock"]:
        pytest.skip("this kernel has no Landlock")
    expected = {"write", "make", "folder", "link", "remove", "move out", "run"}
    # What younger versions of Landlock add: truncate, TCP, signals.
    optional = {"truncate", "connect", "serve", "signal", "connect: [Errno 111] Connection refused"}
    assert expected <= set(confined["refused"]) <= expected | optional


class Kernel:
    """A C library whose kernel has some version of Landlock; notes what it is asked."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.rulesets: list[list[int]] = []

    def prctl(self, *_: int) -> int:
        return 0

    def syscall(self, number: int, *arguments: Any) -> int:
        if number != module._CREATE_RULESET:
            return 0
        if arguments[2] == module._CREATE_RULESET_VERSION:
            return self.version
        self.rulesets.append(list(arguments[0]))
        return 1_000_000  # a descriptor that cannot be closed


@pytest.mark.parametrize(
    ("version", "attributes"),
    [
        (1, [0x1FF3]),
        (2, [0x3FF3]),
        (3, [0x7FF3]),
        (4, [0x7FF3, 3]),
        (5, [0x7FF3, 3]),
        (6, [0x7FF3, 3, 3]),
        (99, [0x7FF3, 3, 3]),
    ],
)
def test_each_kernel_is_asked_for_what_it_knows(
    version: int, attributes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = Kernel(version)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: kernel)
    monkeypatch.setattr(module.resource, "setrlimit", lambda *_: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.confine([tmp_path])
    assert kernel.rulesets == [attributes]


@pytest.mark.parametrize("version", [-1, 0])
def test_a_kernel_without_landlock_is_no_error(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Kernel(version))
    monkeypatch.setattr(module.resource, "setrlimit", lambda *_: None)
    assert module.confine([tmp_path]) is False


def test_of_the_environment_little_is_kept() -> None:
    environment = {
        "PATH": "/usr/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "TZ": "UTC",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    others = dict.fromkeys(
        (
            *("HTTPS_PROXY", "http_proxy", "CLICKHOUSE_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HOME"),
            *("LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "TMPDIR", "BASH_ENV"),
        ),
        "x",
    )
    assert kept_environment(environment | others) == environment
