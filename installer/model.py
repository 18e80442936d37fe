"""The bundle that is to serve: one that is there, the demo's, or one exported now."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.demo import BUNDLE
from clickhouse_clip.installer.record import FOLDER
from clickhouse_clip.udf.errors import InstallError


@dataclass(frozen=True, slots=True)
class Source:
    """A model of open_clip: its name, and the tag or the file of its weights."""

    model: str
    pretrained: str | None
    checkpoint: Path | None

    @property
    def arguments(self) -> list[str]:
        """What `clip-bundle export` is given for it."""
        weights = (
            ["--pretrained", self.pretrained or ""]
            if self.checkpoint is None
            else ["--checkpoint", str(self.checkpoint)]
        )
        return ["--model", self.model, *weights]

    def folder(self, data_dir: Path) -> Path:
        """Where the bundle of it goes that this installation makes."""
        weights = self.pretrained or (self.checkpoint or Path()).stem
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.model}-{weights}")
        return data_dir / FOLDER / "bundles" / name


def named_bundle(text: str) -> Path:
    """The folder that `--bundle` means."""
    return BUNDLE if text == "demo" else Path(text).absolute()


def refuse_without_torch(source: Source) -> None:
    """Raise `InstallError` where a model cannot be exported, with the way to do it elsewhere."""
    missing = [name for name in ("torch", "open_clip") if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} cannot be imported by {sys.executable}, and a server needs "
            "none of it. Make the bundle on any machine that has internet access and copy it here: "
            "pip install 'clickhouse-clip[export]'; "
            f"clip-bundle export {' '.join(source.arguments)} --output clip; then here: "
            "install-udfs --bundle FOLDER"
        )


def export(source: Source, target: Path, progress: Callable[[str], None]) -> None:
    """Make a bundle in `target`, in another process; `InstallError` with the reason if it fails."""
    refuse_without_torch(source)
    progress(f"exporting {source.model} to {target}: this takes minutes")
    command = [sys.executable, "-Im", "clickhouse_clip.udf.bundle_cli", "export"]
    process = subprocess.run(
        [*command, *source.arguments, "--output", str(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["it left without a word"]
        raise InstallError(f"the model cannot be exported: {lines[-1]}")
