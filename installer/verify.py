"""Asks a server whether the functions work: loaded, called once each, and what came back.

The same questions go to a running server and to an embedded engine (see preflight).
"""

from __future__ import annotations

import base64
import contextlib
import math
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clickhouse_clip.installer import disk
from clickhouse_clip.installer.findings import Finding, bad, good, note, reason
from clickhouse_clip.installer.plan import sql_name
from clickhouse_clip.installer.record import Options
from clickhouse_clip.udf.bundle import Manifest
from clickhouse_clip.udf.catalog import FUNCTIONS, SqlFunction
from clickhouse_clip.udf.settings import Settings

#: A picture of 16 x 16 pixels, blue above and yellow below.
_PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAIElEQVR42mOUsznBQApgYiARjGogBjB+uCQyGkoD"
    "rwEAdPQDF+9jQZ0AAAAASUVORK5CYII="
)


class Client(Protocol):
    """What is used of clickhouse-connect's client."""

    def query(self, query: str) -> Any:
        """Run a query that answers with rows."""

    def command(self, cmd: str) -> Any:
        """Run a statement that answers with nothing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a working installation answers: length of a vector, and whether its norm is 1."""

    dimensions: int
    normalized: bool

    @classmethod
    def of(cls, settings: Settings, manifest: Manifest) -> Expected:
        """What an installation with these settings and this model answers."""
        return cls(manifest.embedding_dim, settings.normalize)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens for HTTP, and as whom to ask it."""

    host: str
    port: int
    user: str
    password: str
    secure: bool

    def answers(self) -> bool:
        """Whether anybody listens there."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 2):
            return True
        return False

    def connect(self) -> Client:
        """A client; what the driver raises says why there is none."""
        import clickhouse_connect  # takes longer to load than all the rest

        client: Client = clickhouse_connect.get_client(
            host=self.host,
            port=self.port,
            username=self.user,
            password=self.password,
            interface="https" if self.secure else "http",
        )
        return client


def picture_folder(settings: Settings) -> Path:
    """A folder that the functions may read pictures from."""
    return settings.image_roots[0] if settings.image_roots else settings.runtime_dir


def data_dir_of(client: Client) -> Path | None:
    """The data folder of the server that answers."""
    rows = client.query("SELECT path FROM system.disks WHERE name = 'default'").result_rows
    return Path(rows[0][0]) if rows else None


def foreign_names(client: Client, names: Sequence[str]) -> dict[str, str]:
    """Those of `names` that the server knows from elsewhere, and what they are there."""
    listed = ", ".join(f"'{name}'" for name in names)
    rows = client.query(
        "SELECT name, toString(origin) FROM system.functions "
        f"WHERE (name IN ({listed}) OR case_insensitive AND lower(name) IN ({listed.lower()})) "
        "AND origin != 'ExecutableUserDefined'"
    ).result_rows
    kinds = {"System": "built into ClickHouse", "SQLUserDefined": "CREATE FUNCTION"}
    found = {str(name).lower(): kinds.get(origin, origin) for name, origin in rows}
    return {name: found[name.lower()] for name in names if name.lower() in found}


def reload(client: Client) -> None:
    """Let the server read its configuration and its functions again."""
    client.command("SYSTEM RELOAD CONFIG")
    client.command("SYSTEM RELOAD FUNCTIONS")


def verify(
    client: Client, options: Options, expected: Expected, picture_folder: Path, ids: disk.Ids | None
) -> Iterator[Finding]:
    """Whether each function is loaded, and what it answers.

    For the functions that take a path, a small picture lies in `picture_folder` for a moment.
    """
    missing = dict(_not_loaded(client, [sql_name(options, function) for function in FUNCTIONS]))
    picture = picture_folder / f"clickhouse-clip-{secrets.token_hex(4)}.png"
    try:
        disk.write(picture, _PICTURE, 0o644, ids, None)
    except OSError as error:
        yield note(f"{picture_folder}: no picture can be put there to try ({error.strerror})")
    try:
        for function in FUNCTIONS:
            name = sql_name(options, function)
            if name in missing:
                yield bad(
                    f"{name}: the server has not loaded it: {missing[name]}",
                    "SYSTEM RELOAD CONFIG; SYSTEM RELOAD FUNCTIONS; then install-udfs --check",
                )
            elif function.source != "path" or picture.exists():
                yield _call(client, name, function, picture, expected)
    finally:
        with contextlib.suppress(OSError):
            disk.remove(picture)


def _not_loaded(client: Client, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    listed = ", ".join(f"'{name}'" for name in names)
    found = client.query(f"SELECT name FROM system.functions WHERE name IN ({listed})").result_rows
    absent = set(names) - {row[0] for row in found}
    if not absent:
        return
    reasons: dict[str, str] = {}
    # Engines before 26 have no such table.
    with contextlib.suppress(Exception):
        rows = client.query(
            "SELECT name, toString(load_status), loading_error_message "
            f"FROM system.user_defined_functions WHERE name IN ({listed})"
        ).result_rows
        reasons = {name: f"{status}: {message}".rstrip(": ") for name, status, message in rows}
    for name in absent:
        yield name, reasons.get(name, "it knows no definition of it")


def _call(
    client: Client, name: str, function: SqlFunction, picture: Path, expected: Expected
) -> Finding:
    quoted = str(picture).replace("\\", "\\\\").replace("'", "\\'")
    argument = {
        "text": "'a photo of a dog'",
        "path": f"'{quoted}'",
        "bytes": f"base64Decode('{base64.b64encode(_PICTURE).decode()}')",
    }[function.source]
    try:
        vector = client.query(f"SELECT {name}({argument})").result_rows[0][0]
    except Exception as error:
        return bad(
            f"{name}: a call fails: {reason(error)}",
            "install-udfs --check looks at everything that a call needs",
        )
    norm = math.sqrt(sum(value * value for value in vector))
    if len(vector) != expected.dimensions:
        return bad(
            f"{name}: answers with {len(vector)} numbers, and the model has {expected.dimensions}",
            "an encoder of an earlier model still runs: clip-encoder stop",
        )
    if expected.normalized and not math.isclose(norm, 1, abs_tol=1e-3):
        return bad(
            f"{name}: answers with a vector of length {norm:.4f}, and it should be 1",
            "clip-bundle verify checks the model",
        )
    return good(f"{name}: {len(vector)} dimensions, norm {norm:.3f}")
