"""A scratch ClickHouse server for the tour: its folders, with the functions installed."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clickhouse_clip.installer.cli import main as install_udfs
from clickhouse_clip.udf import launch
from clickhouse_clip.udf.errors import ClipError, InstallError


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
