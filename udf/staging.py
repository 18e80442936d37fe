"""Making a new bundle aside, so that it appears under its name whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clickhouse_clip.udf.errors import ExportError


@contextmanager
def new_bundle(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its name when the block ends well, and is removed if not.

    Raises `ExportError` if something is there already, or if it cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output}: is already there; name another folder or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ExportError(f"{output}: cannot be made ({error.strerror})") from error
    try:
        yield staging
        for path in (*staging.iterdir(), staging):
            # mkdtemp's folder is the owner's alone; the reader is the ClickHouse server's user.
            path.chmod(0o755 if path.is_dir() else 0o644)
        staging.rename(output)
    except OSError as error:
        raise ExportError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
