"""What an installation consists of, as a value: computing it reads and writes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.installer import render
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.owner import Owner
from clickhouse_clip.installer.record import FILE, FOLDER, MINIMAL_SERVER, Options
from clickhouse_clip.udf import catalog
from clickhouse_clip.udf.errors import InstallError
from clickhouse_clip.udf.settings import Settings

#: Characters that mean something in the patterns of `user_defined_executable_functions_config`.
_GLOB = frozenset("*?[]{}\\")

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class FileToPlace:
    """One file; `mode` is its permission bits, `why` says to a person what it is for.

    `keeps_edits` says that the content was made from what is there, so replacing it loses nothing.
    """

    path: Path
    content: str
    mode: int
    why: str
    keeps_edits: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Folders and files in the order in which they are made; all paths are the running system's.

    A server that reloads in the middle sees nothing, or all that a function needs: what makes the
    functions known comes last. `owner` is who everything will belong to, None leaves it to the
    process that places it. `functions` are the SQL names.
    """

    server: Server
    bundle: Path
    interpreter: Path
    options: Options
    owner: Owner | None
    folders: tuple[Path, ...]
    files: tuple[FileToPlace, ...]

    @property
    def private(self) -> Path:
        """The folder in the configuration that holds nothing of anybody else's."""
        return self.server.config_dir / FOLDER

    @property
    def record(self) -> Path:
        """Where it is noted what was placed."""
        return self.private / FILE

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the SQL functions."""
        return tuple(sql_name(self.options, function) for function in catalog.FUNCTIONS)


def sql_name(options: Options, function: catalog.SqlFunction) -> str:
    """What a function of the catalog is called in SQL."""
    return options.prefix + function.name


def make_plan(
    server: Server,
    settings: Settings,
    *,
    interpreter: Path,
    options: Options,
    owner: Owner | None = None,
    settings_text: str | None = None,
    with_server_config: bool = False,
) -> Plan:
    """The plan for `server`; `with_server_config` adds a minimal `config.xml`.

    `settings_text` is a text of `settings` that is there already, and is kept as it is. Raises
    `InstallError` for paths that a server's configuration cannot hold.
    """
    private = server.config_dir / FOLDER
    drop_ins = server.config_dir / "config.d"
    functions_file = private / "functions.xml"
    settings_file = private / "settings.json"
    for path in (functions_file, server.data_dir, server.user_scripts, interpreter):
        _check_characters(path)
    if _GLOB & set(str(functions_file)):
        raise InstallError(
            f"{server.config_dir}: ClickHouse takes *, ?, [], {{}} and \\ in this path for a "
            "pattern; use another configuration folder"
        )
    if options.prefix and not _PREFIX.fullmatch(options.prefix):
        raise InstallError(
            f"--prefix {options.prefix!r}: letters, digits and _ are what a function's name may "
            "hold, and no digit comes first"
        )
    towers = {function.script: function.tower for function in catalog.FUNCTIONS}
    files = [
        FileToPlace(
            settings_file,
            settings_text or settings.to_json(),
            0o644,
            "settings of the encoder",
            keeps_edits=True,
        ),
        *(
            FileToPlace(
                server.user_scripts / script,
                render.launcher(script, interpreter, settings_file),
                0o755,
                f"starts a worker of the {tower} functions",
            )
            for script, tower in towers.items()
        ),
        FileToPlace(functions_file, render.functions_xml(options), 0o644, "the SQL functions"),
        FileToPlace(
            drop_ins / "clickhouse-clip.xml",
            render.drop_in_xml(functions_file),
            0o644,
            "makes the functions known to the server",
        ),
    ]
    if options.warmup:
        files.append(
            FileToPlace(
                # A startup script that fails ends those after it, so this one comes last.
                drop_ins / "zzz-clickhouse-clip-warmup.xml",
                render.warmup_xml(sql_name(options, catalog.FUNCTIONS[0])),
                0o644,
                "loads the model when the server starts",
            )
        )
    if with_server_config:
        files.append(
            FileToPlace(
                server.config_dir / MINIMAL_SERVER,
                render.server_xml(server),
                0o644,
                "a minimal server",
            )
        )
    return Plan(
        server,
        settings.bundle,
        interpreter,
        options,
        owner,
        folders=(
            server.data_dir,
            server.user_files,
            server.user_scripts,
            server.data_dir / FOLDER,
            private,
            drop_ins,
        ),
        files=tuple(files),
    )


def _check_characters(path: Path) -> None:
    # isprintable() is also False for bytes that are no UTF-8: neither XML nor Python source holds
    # them.
    if not str(path).isprintable():
        raise InstallError(
            f"{str(path)!r}: control characters or bytes that are no UTF-8 in a path"
        )
