"""The content of every file that is placed, from the catalog and the plan's paths. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

from clickhouse_clip.config import render
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.record import Options
from clickhouse_clip.udf import catalog
from clickhouse_clip.udf.errors import InstallError

#: Linux cuts a longer first line off (`BINPRM_BUF_SIZE` was 128 before 5.1), or refuses the file.
_SHEBANG_MAX_BYTES = 127


def functions_xml(options: Options) -> str:
    """The definitions of all functions in the catalog."""
    return render(
        "functions.xml.j2",
        functions=catalog.FUNCTIONS,
        return_type=catalog.RETURN_TYPE,
        return_name=catalog.RETURN_NAME,
        pool_size=options.pool_size,
        prefix=options.prefix,
    )


def drop_in_xml(functions_file: Path) -> str:
    """The piece of server configuration that makes `functions_file` known beside all others."""
    return render("drop_in.xml.j2", functions_file=functions_file)


def warmup_xml(function: str) -> str:
    """The piece of server configuration that calls `function` once when the server starts."""
    return render("warmup.xml.j2", function=function)


def server_xml(server: Server) -> str:
    """A whole `config.xml` for a server that has none."""
    return render(
        "server.xml.j2",
        data_dir=server.data_dir,
        user_files=server.user_files,
        user_scripts=server.user_scripts,
    )


def launcher(script: str, interpreter: Path, settings_file: Path) -> str:
    """What ClickHouse starts for the functions of `script`: it names `interpreter` and settings."""
    return render(
        "launcher.py.j2",
        start=_start(str(interpreter)),
        module=script.removesuffix(".py"),
        settings=ascii(str(settings_file)),
    )


def _start(interpreter: str) -> str:
    """The first lines of a script that `interpreter` runs, isolated from the caller's environment.

    A shebang holds no spaces and 127 bytes. Where that does not do, /bin/sh reads the lines as a
    command, and Python as a string.
    """
    shebang = f"#!{interpreter} -I"
    if " " not in interpreter and len(shebang.encode()) <= _SHEBANG_MAX_BYTES:
        return shebang
    if "\\" in interpreter:
        raise InstallError(
            f"{interpreter}: a backslash and a space or more than 120 bytes in the path of Python "
            "cannot be launched; install the package into another folder"
        )
    return f"#!/bin/sh\n'''exec' {shlex.quote(interpreter)} -I \"$0\" \"$@\"\n' '''"
