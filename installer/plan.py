"""What an installation consists of, as a value: computing it reads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.installer import render
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.udf import catalog
from clickhouse_clip.udf.errors import InstallError
from clickhouse_clip.udf.settings import Settings

#: Folder of this package's files, both in the configuration and in the data folder.
FOLDER = "clickhouse-clip"

#: Characters that mean something in the patterns of `user_defined_executable_functions_config`.
_GLOB = frozenset("*?[]{}\\")


@dataclass(frozen=True, slots=True)
class FileToPlace:
    """One file; `mode` is its permission bits, `why` says to a person what it is for."""

    path: Path
    content: str
    mode: int
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Folders and files in the order in which they are made; `record` is where they are noted.

    A server that reloads in the middle sees nothing, or all that a function needs: what makes the
    functions known comes last.
    """

    directories: tuple[Path, ...]
    files: tuple[FileToPlace, ...]
    record: Path


def make_plan(
    server: Server,
    settings: Settings,
    *,
    interpreter: Path,
    pool_size: int,
    with_server_config: bool = False,
) -> Plan:
    """The plan for `server`; `with_server_config` adds a minimal `config.xml`.

    Raises `InstallError` for paths that a server's configuration cannot hold.
    """
    private = server.config_dir / FOLDER
    functions_file = private / "functions.xml"
    settings_file = private / "settings.json"
    for path in (functions_file, server.data_dir, server.user_scripts, interpreter):
        _check_characters(path)
    if _GLOB & set(str(functions_file)):
        raise InstallError(
            f"{server.config_dir}: ClickHouse takes *, ?, [], {{}} and \\ in this path for a "
            "pattern; use another configuration folder"
        )
    towers = {function.script: function.tower for function in catalog.FUNCTIONS}
    files = [
        FileToPlace(settings_file, settings.to_json(), 0o644, "settings of the encoder"),
        *(
            FileToPlace(
                server.user_scripts / script,
                render.launcher(script, interpreter, settings_file),
                0o755,
                f"starts a worker of the {tower} functions",
            )
            for script, tower in towers.items()
        ),
        FileToPlace(functions_file, render.functions_xml(pool_size), 0o644, "the SQL functions"),
        FileToPlace(
            server.config_dir / "config.d" / "clickhouse-clip.xml",
            render.drop_in_xml(functions_file),
            0o644,
            "makes the functions known to the server",
        ),
    ]
    if with_server_config:
        files.append(
            FileToPlace(
                server.config_dir / "config.xml",
                render.server_xml(server),
                0o644,
                "a minimal server",
            )
        )
    return Plan(
        directories=(
            server.data_dir,
            server.user_files,
            server.user_scripts,
            server.data_dir / FOLDER,
            private,
            server.config_dir / "config.d",
        ),
        files=tuple(files),
        record=private / "installed.json",
    )


def _check_characters(path: Path) -> None:
    # isprintable() is also False for bytes that are no UTF-8: neither XML nor Python source holds
    # them.
    if not str(path).isprintable():
        raise InstallError(
            f"{str(path)!r}: control characters or bytes that are no UTF-8 in a path"
        )
