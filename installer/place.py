"""Carries a plan out, or takes an installation back, each as one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from clickhouse_clip.installer import disk, transaction
from clickhouse_clip.installer.compare import Placed
from clickhouse_clip.installer.plan import FileToPlace, Plan
from clickhouse_clip.installer.record import FILE, FOLDER, MINIMAL_SERVER, Record
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.transaction import Change, digest
from clickhouse_clip.udf import __version__
from clickhouse_clip.udf.errors import InstallError

#: What becomes of a file that is written.
_WRITTEN = ("new", "changed")


@contextmanager
def prepared(config_dir: Path, ids: disk.Ids | None) -> Iterator[tuple[Path, ...]]:
    """Hold the configuration folder for one run; gives the folders that were made for that.

    The folder is made if need be (and removed again on failure), other runs are kept away, and what
    an interrupted one began is undone or finished.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(config_dir.parents), config_dir):
            if not folder.is_dir():
                made.append(folder)
                disk.make_folder(folder, ids if folder == config_dir else None)
        with transaction.lock(config_dir):
            transaction.recover(config_dir)
            yield tuple(made)
    except BaseException as failure:
        for folder in reversed(made):
            with suppress(OSError):
                disk.remove_folder(folder)
        if isinstance(failure, OSError):
            raise InstallError(
                f"{transaction.describe(failure)}. Everything is as it was before"
            ) from failure
        raise


def place(
    plan: Plan,
    placed: Sequence[Placed],
    record: Record | None,
    root: Root,
    ids: disk.Ids | None,
    *,
    made: Sequence[Path] = (),
    bundles: Sequence[Path] = (),
    check: Callable[[], None] = lambda: None,
) -> None:
    """Make the files what `placed` says, and note it in the plan's record.

    `made` are folders and `bundles` models that this run has made beforehand. `check` may raise
    when everything is in place, and all is undone. `prepared` must be held.
    """
    folders = tuple(root.at(folder) for folder in _with_parents(plan.folders))
    missing = tuple(folder for folder in folders if not folder.is_dir())
    new_record = next_record(
        plan, placed, record, tuple(map(root.seen, (*made, *missing))), bundles
    )
    record_file = FileToPlace(plan.record, new_record.to_json(), 0o644, "what was placed")
    changes = [
        Change(root.at(file.path), file.content.encode(), file.mode, ids)
        for file in (record_file, *(entry.file for entry in placed if entry.change in _WRITTEN))
    ]
    changes += [
        Change(root.at(entry.file.path), None) for entry in placed if entry.change == "removed"
    ]
    # What is above the server's own folders, in an image that has nothing yet, stays root's.
    make = [(folder, ids if root.seen(folder) in plan.folders else None) for folder in missing]
    transaction.apply(root.at(plan.server.config_dir), make, changes, (), check)


def is_needed(plan: Plan, placed: Sequence[Placed], record: Record | None) -> bool:
    """Whether there is anything to write."""
    return (
        any(entry.change in (*_WRITTEN, "removed") for entry in placed)
        or next_record(plan, placed, record, (), ()) != record
    )


def take_back(config_dir: Path, record: Record, placed: Sequence[Placed], root: Root) -> None:
    """Remove what `placed` calls removed, in reverse order, and the folders that were made for it.

    What is kept stays in the record. `prepared` must be held.
    """
    removed = [entry.file.path for entry in reversed(placed) if entry.change == "removed"]
    kept = {str(entry.file.path) for entry in placed if entry.change == "kept"}
    record_file = root.at(config_dir / FOLDER / FILE)
    changes = [Change(root.at(path), None) for path in removed]
    if kept:
        left = {name: value for name, value in record.files.items() if name in kept}
        text = replace(record, files=left).to_json()
        status = record_file.stat()
        changes.append(Change(record_file, text.encode(), 0o644, (status.st_uid, status.st_gid)))
    else:
        changes.append(Change(record_file, None))
    folders = [root.at(Path(folder)) for folder in reversed(record.folders)]
    transaction.apply(root.at(config_dir), (), changes, folders, lambda: None)


def next_record(
    plan: Plan,
    placed: Sequence[Placed],
    record: Record | None,
    folders: Sequence[Path],
    bundles: Sequence[Path],
) -> Record:
    """What is known of the installation once it is done; `folders` and `bundles` are new ones."""
    earlier = {} if record is None else record.files
    minimal = str(plan.server.config_dir / MINIMAL_SERVER)
    files = {minimal: earlier[minimal]} if minimal in earlier else {}
    for entry in placed:
        name = str(entry.file.path)
        if entry.change in ("kept", "unchanged") and name in earlier:
            files[name] = earlier[name]  # so that an edited one is known as edited next time, too
        elif entry.change != "removed":
            files[name] = digest(entry.file.content.encode())
    return Record(
        version=__version__,
        data_dir=str(plan.server.data_dir),
        user_scripts=str(plan.server.user_scripts),
        interpreter=str(plan.interpreter),
        options=plan.options,
        files=files,
        folders=_joined(() if record is None else record.folders, folders),
        bundles=_joined(() if record is None else record.bundles, bundles),
    )


def _joined(known: Sequence[str], new: Sequence[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *map(str, new))))


def _with_parents(folders: Sequence[Path]) -> tuple[Path, ...]:
    """The folders, each after those above it."""
    found: dict[Path, None] = {}
    for folder in folders:
        for path in (*reversed(folder.parents), folder):
            found.setdefault(path)
    return tuple(found)
