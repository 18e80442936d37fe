"""Containers as tests need them: started, asked, looked into, killed, and removed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client

PASSWORD = "of the tests"

BIN = "/opt/clickhouse-clip/bin"

#: What a server has to start and load a model, on a busy machine.
PATIENCE = 180.0


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the docker command; stdout and stderr are captured, and shown if it fails."""
    process = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=900
    )
    if check and process.returncode:
        raise AssertionError(
            f"docker {' '.join(arguments)}\n{process.stdout[-4000:]}{process.stderr[-4000:]}"
        )
    return process


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition for as long as anything here may take."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.2)


@dataclass(frozen=True)
class Container:
    """A container that runs a server."""

    name: str

    def port(self) -> int:
        """Where its HTTP port is on this machine; another one after each start."""
        lines = docker("port", self.name, "8123/tcp").stdout.splitlines()
        return int(lines[0].rpartition(":")[2])

    def client(self) -> Client:
        """A client of its server, as soon as that answers."""
        found: list[Client] = []

        def connected() -> bool:
            state = self.inspect()["State"]
            assert state["Running"], f"the container has left:\n{self.logs()}"
            try:
                client = clickhouse_connect.get_client(
                    host="127.0.0.1", port=self.port(), password=PASSWORD, compress=False
                )
            except Exception:
                return False
            found.append(client)
            return True

        wait_until(connected, f"{self.name} answers")
        return found[0]

    def run(self, *command: str, user: str | None = None, check: bool = True) -> str:
        """What a command prints in the container, both outputs together."""
        options = [] if user is None else ["--user", user]
        process = docker("exec", *options, self.name, *command, check=check)
        return process.stdout + process.stderr

    def encoder(self) -> dict[str, Any] | None:
        """The report of the encoder service, None if there is none."""
        process = docker("exec", self.name, f"{BIN}/clip-encoder", "status", "--json", check=False)
        if process.returncode == 3:
            return None
        assert process.returncode == 0, process.stderr
        report: dict[str, Any] = json.loads(process.stdout)
        return report

    def encoder_files(self) -> list[str]:
        """What an encoder service has left in the data folder."""
        folder = "/var/lib/clickhouse/clickhouse-clip"
        return self.run("sh", "-c", f"test ! -e {folder} || find {folder}").split()

    def inspect(self) -> dict[str, Any]:
        """What Docker knows of it."""
        (found,) = json.loads(docker("inspect", self.name).stdout)
        assert isinstance(found, dict)
        return found

    def logs(self) -> str:
        """What its server has printed."""
        process = docker("logs", self.name)
        return process.stdout + process.stderr


def value(client: Client, sql: str, **parameters: Any) -> Any:
    """The one value of a query."""
    return client.query(sql, parameters=parameters).result_rows[0][0]
