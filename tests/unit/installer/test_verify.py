"""What is made of a server's answers; real servers answer in tests/embedded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clickhouse_clip.installer.discover import Server, standalone
from clickhouse_clip.installer.record import Options
from clickhouse_clip.installer.running import Running, find_running
from clickhouse_clip.installer.verify import Address, Expected, foreign_names, verify
from clickhouse_clip.udf.catalog import FUNCTIONS

NAMES = [function.name for function in FUNCTIONS]
UNIT = [0.6, 0.8, 0.0, 0.0]


class FakeClient:
    """Answers by what a query holds; an exception is raised."""

    def __init__(self, vector: Any = UNIT, loaded: list[str] = NAMES, **answers: Any) -> None:
        self.queries: list[str] = []
        self._vector = vector
        self._loaded = loaded
        self._answers = answers

    def query(self, query: str) -> Any:
        self.queries.append(query)
        if "system.user_defined_functions" in query:
            rows = self._answers.get("states", RuntimeError("no such table"))
        elif "system.functions" in query:
            rows = self._answers.get("known", [(name,) for name in self._loaded])
        elif "system.disks" in query:
            rows = self._answers["disks"]
        else:
            rows = self._vector if isinstance(self._vector, Exception) else [(self._vector,)]
        if isinstance(rows, Exception):
            raise rows
        return SimpleNamespace(result_rows=rows)

    def command(self, cmd: str) -> None:
        self.queries.append(cmd)


def look(client: FakeClient, folder: Path, **expected: Any) -> list[tuple[str, str]]:
    wanted = Expected(**({"dimensions": 4, "normalized": True} | expected))
    found = verify(client, Options(), wanted, folder, None)
    return [(finding.level, finding.message) for finding in found]


def test_all_functions_are_called_once(tmp_path: Path) -> None:
    client = FakeClient()
    found = look(client, tmp_path)
    assert found == [("ok", f"{name}: 4 dimensions, norm 1.000") for name in NAMES]
    calls = [query for query in client.queries if query.startswith("SELECT encode_")]
    assert len(calls) == len(NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("vector", "expected", "message"),
    [
        ([1.0, 0.0], {}, "answers with 2 numbers, and the model has 4"),
        ([], {}, "answers with 0 numbers"),
        ([0.0, 0.0, 0.0, 2.0], {}, "a vector of length 2.0000, and it should be 1"),
        (RuntimeError("Code: 1. bad, Stack trace: x\ny"), {}, "a call fails: Code: 1. bad"),
        (RuntimeError(), {}, "a call fails: RuntimeError"),
    ],
)
def test_wrong_answers(tmp_path: Path, vector: Any, expected: dict[str, Any], message: str) -> None:
    for level, found in look(FakeClient(vector), tmp_path, **expected):
        assert level == "error"
        assert message in found
        assert "Stack trace" not in found


def test_raw_vectors_have_any_length(tmp_path: Path) -> None:
    found = look(FakeClient([0.0, 0.0, 0.0, 2.0]), tmp_path, normalized=False)
    assert {level for level, _ in found} == {"ok"}


def test_functions_that_did_not_load(tmp_path: Path) -> None:
    client = FakeClient(loaded=NAMES[1:], states=[(NAMES[0], "Failed", "no such file")])
    first, *others = look(client, tmp_path)
    assert first == ("error", f"{NAMES[0]}: the server has not loaded it: Failed: no such file")
    assert {level for level, _ in others} == {"ok"}
    # Older servers have no such table.
    first, *_ = look(FakeClient(loaded=[]), tmp_path)
    assert "it knows no definition of it" in first[1]


def test_no_picture_can_be_put_there(tmp_path: Path) -> None:
    found = look(FakeClient(), tmp_path / "missing")
    assert found[0][0] == "note"
    assert len(found) == 1 + sum(function.source != "path" for function in FUNCTIONS)


def test_names_that_are_taken() -> None:
    client = FakeClient(known=[("encode_text", "SQLUserDefined"), ("ENCODE_IMAGE", "System")])
    assert foreign_names(client, NAMES) == {
        "encode_text": "CREATE FUNCTION",
        "encode_image": "built into ClickHouse",
    }


@pytest.mark.parametrize(
    ("options", "environment", "ports", "expected"),
    [
        ({}, {}, {}, ("localhost", 8123, "default", "", False)),
        ({}, {}, {"http_port": 9123}, ("localhost", 9123, "default", "", False)),
        ({}, {}, {"https_port": 8443}, ("localhost", 8443, "default", "", True)),
        ({"port": 8443}, {}, {"https_port": 8443}, ("localhost", 8443, "default", "", True)),
        (
            {},
            {
                "CLICKHOUSE_HOST": "db",
                "CLICKHOUSE_PORT": "1",
                "CLICKHOUSE_USER": "me",
                "CLICKHOUSE_PASSWORD": "pw",
            },
            {"http_port": 9123},
            ("db", 1, "me", "pw", False),
        ),
        (
            {"host": "a", "port": 2, "user": "u", "password": "p"},
            {"CLICKHOUSE_HOST": "db", "CLICKHOUSE_USER": "me"},
            {},
            ("a", 2, "u", "p", False),
        ),
    ],
)
def test_address(
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    environment: dict[str, str],
    ports: dict[str, int],
    expected: tuple[Any, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = Server(Path("/e"), Path("/d"), Path("/d/s"), Path("/d/f"), **ports)  # type: ignore[arg-type]
    assert Running(**options).address(server) == Address(*expected)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("client", "level", "message"),
    [
        (None, "note", "no server answers at localhost:8123"),
        (RuntimeError("Authentication failed"), "warning", "cannot be asked as default"),
        (FakeClient(disks=[("/elsewhere/",)]), "note", "is another one: its data is in /elsewhere"),
    ],
)
def test_no_server_to_ask(
    monkeypatch: pytest.MonkeyPatch, asked: bool, client: Any, level: str, message: str
) -> None:
    def connect(_: Address) -> Any:
        if isinstance(client, Exception):
            raise client
        return client

    monkeypatch.setattr(Address, "answers", lambda _: client is not None)
    monkeypatch.setattr(Address, "connect", connect)
    running = Running(host="localhost") if asked else Running()
    found, (finding,) = find_running(running, standalone(Path("/e"), Path("/d")))
    assert found is None
    # Whoever names a server wants to know that it does not answer; else there may be none.
    assert finding.level == ("error" if asked else level)
    assert message in finding.message


def test_the_server_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(disks=[("/d/",)])
    monkeypatch.setattr(Address, "answers", lambda _: True)
    monkeypatch.setattr(Address, "connect", lambda _: client)
    assert find_running(Running(), standalone(Path("/e"), Path("/d"))) == (client, [])
