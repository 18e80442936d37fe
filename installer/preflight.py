"""Tries the functions on an embedded ClickHouse engine with the server's real configuration.

The engine runs as the server's user, in a process of its own. It gets a copy of the configuration
in which every path below the server's data folder, except that of the scripts and of the user
files, leads to a scratch folder instead; so it writes nothing of the server's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from xml.sax.saxutils import escape

from clickhouse_clip.installer import config_tree
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.findings import Finding
from clickhouse_clip.installer.owner import Owner
from clickhouse_clip.installer.record import Options
from clickhouse_clip.installer.verify import Expected
from clickhouse_clip.udf.errors import InstallError

#: What a server does with these has nothing to do with functions, and could touch other machines,
#: other disks, or the server's own data.
_LEFT_OUT = (
    "access_control_path",
    "backups",
    "clusters",
    "dictionaries_config",
    "distributed_ddl",
    "include_from",
    "interserver_http_host",
    "keeper_server",
    "ldap_servers",
    "logger",
    "named_collections_storage",
    "openSSL",
    "remote_servers",
    "startup_scripts",
    "storage_configuration",
    "user_directories",
    "users_config",
    "zookeeper",
)
_SECONDS = 600


def refuse_without_engine() -> None:
    """Raise `InstallError` where the embedded engine is not installed."""
    for package in ("chdb", "clickhouse_connect"):
        if importlib.util.find_spec(package) is None:
            raise InstallError(
                f"--preflight needs the embedded engine, and {package} cannot be imported: "
                f"{sys.executable} -m pip install 'clickhouse-clip[demo]'"
            )


def preflight(
    server: Server, options: Options, expected: Expected, picture_folder: Path, owner: Owner | None
) -> list[Finding]:
    """Call each function on the real configuration; `owner` is who the engine runs as."""
    assert server.main_config is not None
    scratch = Path(tempfile.mkdtemp(prefix="clickhouse-clip-preflight-"))
    try:
        config = _copy_configuration(server, scratch)
        request: dict[str, object] = {
            "config": str(config),
            "path": str(scratch / "data"),
            "options": asdict(options),
            "expected": asdict(expected),
            "pictures": str(picture_folder),
        }
        if owner is not None:
            for path in (scratch, *scratch.rglob("*")):
                os.chown(path, owner.uid, owner.gid)
        return _run(request, scratch, owner)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_configuration(server: Server, scratch: Path) -> Path:
    """Copy what may matter to functions; gives the main file of the copy."""
    assert server.main_config is not None
    (scratch / "data").mkdir()
    target = scratch / "config"
    main = copy_as_xml(server.main_config, target)
    tree, _ = config_tree.load(server.main_config)
    redirected = {
        "path": f"{scratch}/data/",
        "tmp_path": f"{scratch}/data/tmp/",
        "user_scripts_path": f"{server.user_scripts}/",
        "user_files_path": f"{server.user_files}/",
    }
    for element in tree.children:
        below = Path(element.text.strip() or ".")
        if below.is_relative_to(server.data_dir) and element.name not in redirected:
            inner = below.relative_to(server.data_dir)
            redirected[element.name] = f"{scratch}/data/{inner}/"
    lines = [f'<{name} remove="1"/>' for name in _LEFT_OUT if tree.all(name)]
    lines += [f'<{name} replace="1">{escape(value)}</{name}>' for name, value in redirected.items()]
    drop_ins = target / "config.d"
    drop_ins.mkdir(exist_ok=True)
    # '~' sorts behind every letter, so this has the last word.
    (drop_ins / "~preflight.xml").write_text(f"<clickhouse>{''.join(lines)}</clickhouse>")
    return main


def copy_as_xml(main: Path, target: Path) -> Path:
    """Copy a configuration's files to `target`; gives the copy of `main`.

    The embedded engine is built without YAML, so files of it become XML, and keep their order.
    """
    for file in main.parent.rglob("*"):
        suffix = file.suffix.lower()
        if suffix not in (".xml", ".conf", ".yaml", ".yml") or not file.is_file():
            continue
        copy = target / file.relative_to(main.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if suffix in (".xml", ".conf"):
            copy.write_bytes(file.read_bytes())
        else:
            copy = copy.with_suffix(".xml") if file == main else copy.with_name(f"{copy.name}.xml")
            copy.write_text(config_tree.to_xml(config_tree.read(file)))
    return target / main.with_suffix(".xml").name


def _run(request: dict[str, object], scratch: Path, owner: Owner | None) -> list[Finding]:
    identity = {} if owner is None else {"user": owner.uid, "group": owner.gid, "extra_groups": []}
    try:
        process = subprocess.run(
            [sys.executable, "-Im", "clickhouse_clip.installer.preflight_host"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            cwd=scratch,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(scratch)},
            timeout=_SECONDS,
            check=False,
            **identity,  # type: ignore[call-overload]
        )
    except OSError as error:
        raise InstallError(
            f"{sys.executable}: the server's user cannot start it ({error.strerror}); install the "
            "package into a folder that all may read, such as /opt/clickhouse-clip"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"the embedded engine did not answer within {_SECONDS} s") from error
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines:
        reason = (process.stderr.strip().splitlines() or ["it left without a word"])[-1]
        raise InstallError(f"the embedded engine does not run on this configuration: {reason}")
    return [Finding(**finding) for finding in json.loads(lines[-1])]
