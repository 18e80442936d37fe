"""A scratch ClickHouse server for the tour: its folder, the installed functions, the engine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickhouse_clip.installer.cli import main as install_udfs
from clickhouse_clip.udf import launch
from clickhouse_clip.udf.errors import ClipError, InstallError


@dataclass(frozen=True, slots=True)
class Table:
    """The result of a query."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A server's folder with the functions installed; `pictures` appears in its user files.

    `bundle` is what install-udfs takes: a folder, or `demo`.
    """

    folder: Path
    bundle: str
    pictures: Path

    @property
    def data_dir(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    @property
    def config_dir(self) -> Path:
        """The folder of the server's config.xml."""
        return self.folder / "config"

    @property
    def user_files(self) -> Path:
        """Where SQL finds files by relative paths."""
        return self.data_dir / "user_files"

    @property
    def arguments(self) -> list[str]:
        """What install-udfs is given."""
        return [
            *("--bundle", self.bundle, "--standalone"),
            *("--config-dir", str(self.config_dir), "--data-dir", str(self.data_dir)),
            *("--image-root", str(self.pictures)),
        ]

    def install(self) -> str:
        """Make the server anew; returns what install-udfs said. Raises `InstallError`."""
        if self.folder.exists():
            # Only what an earlier tour made may be thrown away.
            if not (self.config_dir / "clickhouse-clip" / "installed.json").is_file():
                raise InstallError(
                    f"{self.folder}: is there already and no demo server; choose another --output"
                )
            self.stop_encoder()
            shutil.rmtree(self.folder)
        said, failed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
            code = install_udfs(self.arguments)
        if code:
            raise InstallError(failed.getvalue().removeprefix("install-udfs: ").rstrip())
        (self.user_files / "pictures").symlink_to(self.pictures, target_is_directory=True)
        return said.getvalue()

    def rows_encoded(self) -> int:
        """How many pictures the encoder has encoded so far."""
        report = self._ask_encoder("status")
        rows = report.get("rows", {})
        return sum(count for name, count in rows.items() if name.startswith("encode_image"))

    def stop_encoder(self) -> None:
        """End the encoder service now, rather than when its grace period is over."""
        self._ask_encoder("stop")

    def _ask_encoder(self, role: str) -> dict[str, Any]:
        runtime_dir = self.data_dir / "clickhouse-clip" / "run"
        if not runtime_dir.is_dir():
            return {}
        with contextlib.suppress(ClipError):
            return launch.request_report(str(runtime_dir), role) or {}
        return {}


class Engine:
    """ClickHouse itself, inside this process, on a sandbox's configuration. One per process."""

    def __init__(self, sandbox: Sandbox) -> None:
        # Where a server resolves relative paths in file() by its user files, the embedded engine
        # takes the working directory. With them the same, the SQL of the tour runs on both.
        os.chdir(sandbox.user_files)
        # Imported here: it takes a second, and the tour says something before.
        import clickhouse_connect

        logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
        self._client = clickhouse_connect.get_client(
            interface="chdb",
            path=str(sandbox.data_dir),
            chdb_options={"config-file": str(sandbox.config_dir / "config.xml")},
        )

    def query(self, sql: str) -> Table:
        """Run a query that answers with rows."""
        result = self._client.query(sql)
        return Table(tuple(result.column_names), tuple(tuple(row) for row in result.result_rows))

    def command(self, sql: str) -> None:
        """Run a statement that answers with nothing."""
        self._client.command(sql)

    def close(self) -> None:
        """Shut the engine down; its workers leave."""
        self._client.close()


@contextlib.contextmanager
def watched(look: Callable[[], None], every: float = 0.2) -> Iterator[None]:
    """Call `look` again and again, in another thread, while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def command_line(arguments: Sequence[str]) -> str:
    """The install command as a person types it: paths below the working directory shortened."""
    here = f"{Path.cwd()}/"
    return " ".join(["install-udfs", *(argument.removeprefix(here) for argument in arguments)])
