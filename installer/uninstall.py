"""`--uninstall`: takes an installation back, so that the server is as it was before it."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.installer import disk, place, service
from clickhouse_clip.installer.compare import Placed, obsolete
from clickhouse_clip.installer.findings import Finding, note, warning
from clickhouse_clip.installer.record import FOLDER, Record, load_record
from clickhouse_clip.installer.root import Root
from clickhouse_clip.udf.errors import ServiceError, SettingsError
from clickhouse_clip.udf.settings import Settings


@dataclass(frozen=True, slots=True)
class Removal:
    """What taking an installation back means; `settings` None where they cannot be read."""

    record: Record
    settings: Settings | None
    placed: tuple[Placed, ...]


def plan_removal(config_dir: Path, root: Root, *, force: bool) -> Removal | None:
    """What is to be removed, and what was edited and stays unless `force`; None if nothing is."""
    private = root.at(config_dir / FOLDER)
    record = load_record(private / "installed.json")
    if record is None:
        return None
    settings = None
    with contextlib.suppress(SettingsError):
        settings = Settings.load(private / "settings.json")
    return Removal(record, settings, tuple(obsolete(record, (), root, force=force)))


def remove_files(config_dir: Path, removal: Removal, root: Root) -> None:
    """Remove the files, all or none. `place.prepared` must be held."""
    place.take_back(config_dir, removal.record, removal.placed, root)


def clean_up(removal: Removal, root: Root) -> list[Finding]:
    """End the service and remove what it left, the models made for this, and empty folders.

    After the files are gone and the server knows it: a worker could start the service again.
    """
    findings = []
    if removal.settings is not None and root.directory is None:
        try:
            if service.stop(removal.settings):
                findings.append(note("the encoder service has left"))
            service.clear(removal.settings)
        except (ServiceError, OSError) as error:
            findings.append(
                warning(
                    f"the encoder service: {error}",
                    f"remove {removal.settings.runtime_dir} when it has left",
                )
            )
    for bundle in removal.record.bundles:
        shutil.rmtree(root.at(Path(bundle)), ignore_errors=True)
    own = Path(removal.record.data_dir) / FOLDER
    for folder in (own / "bundles", own, *map(Path, reversed(removal.record.folders))):
        with contextlib.suppress(OSError):
            disk.remove_folder(root.at(folder))
    left = [entry for entry in removal.placed if entry.change == "kept"]
    if left:
        findings.append(
            warning(
                f"{', '.join(str(entry.file.path) for entry in left)}: was edited since it was "
                "placed, and is kept",
                "install-udfs --uninstall --force removes it too",
            )
        )
    return findings
