"""What an installation placed, so that upgrade, uninstall and --check know it exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from clickhouse_clip.udf.catalog import FUNCTIONS
from clickhouse_clip.udf.errors import InstallError

#: Folder of this package's files, both in the configuration and in the data folder.
FOLDER = "clickhouse-clip"

#: The record's own file in it.
FILE = "installed.json"

#: The main configuration file of a server that the installer makes.
MINIMAL_SERVER = "config.xml"

_SCRIPTS = frozenset(function.script for function in FUNCTIONS)


@dataclass(frozen=True, slots=True)
class Options:
    """What of an installation lies in no setting, and is kept by the next run unless it says more.

    pool_size: workers per function, at most.
    prefix: comes before every SQL function's name.
    warmup: whether the server loads the model when it starts.
    """

    # One big query borrows a worker for each of its threads (as many as the machine has cores);
    # what is left over is there for searches beside it.
    pool_size: int = 32
    prefix: str = ""
    warmup: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One installation. Paths are the running system's.

    files: path to SHA-256 of what was placed.
    folders: those that were made for it, outermost first.
    bundles: models that were exported for it.
    """

    version: str
    data_dir: str
    user_scripts: str
    interpreter: str
    options: Options = field(default_factory=Options)
    files: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of the record's file."""
        return json.dumps(asdict(self), indent=2) + "\n"


def load_record(path: Path) -> Record | None:
    """The record at `path`, None if there is none; `InstallError` if it cannot be used."""
    try:
        values = json.loads(path.read_bytes())
        options = Options(**values.pop("options"))
        known = {entry.name for entry in fields(Record)}
        record = Record(
            **{name: value for name, value in values.items() if name in known}
            | {
                "options": options,
                "files": {str(name): str(digest) for name, digest in values["files"].items()},
                "folders": tuple(values["folders"]),
                "bundles": tuple(values["bundles"]),
            }
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(
            f"{path}: cannot be read ({error.strerror}); run install-udfs as a user who can"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstallError(
            f"{path}: is damaged, so what earlier runs placed is unknown; remove it, then whatever "
            "the next run finds in its way"
        ) from error
    _refuse_foreign_paths(record, path)
    return record


def _refuse_foreign_paths(record: Record, path: Path) -> None:
    """A record lies in a folder of the server's user, and root removes what it names."""
    for name in record.files:
        file = Path(name)
        ours = file.parent.name in (FOLDER, "config.d") or file.name in (*_SCRIPTS, MINIMAL_SERVER)
        if not ours or not file.is_absolute():
            raise InstallError(f"{path}: names {name}, which install-udfs never places; remove it")
    for name in record.bundles:
        if Path(name).parts[-3:-1] != (FOLDER, "bundles"):
            raise InstallError(f"{path}: names {name}, which install-udfs never makes; remove it")
