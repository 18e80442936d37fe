"""A server's own executable functions stay callable when ours are installed beside them.

Each configuration is opened twice by the real engine, before and after, in a process of its own: an
engine takes one configuration per process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import discover
from clickhouse_clip.installer.place import place
from clickhouse_clip.installer.plan import make_plan
from clickhouse_clip.udf import catalog
from clickhouse_clip.udf.settings import Settings

PATTERN = "user_defined_executable_functions_config"

FUNCTION = """<functions><function>
    <type>executable_pool</type><name>{name}</name><return_type>String</return_type>
    <argument><type>String</type></argument><format>TabSeparated</format>
    <command>echo.sh</command>
</function></functions>"""

ENGINE = """
import json, sys
import clickhouse_connect

data, config, *names = sys.argv[1:]
client = clickhouse_connect.get_client(
    interface="chdb", path=data, chdb_options={"config-file": config}
)
loaded = client.query("SELECT name FROM system.user_defined_functions").result_columns
called = []
for name in names:
    try:
        answer = client.query(f"SELECT {name}('x')").result_rows
    except Exception:
        continue
    assert answer == [("answer x",)], answer
    called.append(name)
print(json.dumps([sorted(loaded[0] if loaded else []), called]))
"""

STOCK = f"<{PATTERN}>*_function.*ml</{PATTERN}>"
SECOND = f"<{PATTERN}>more/*.xml</{PATTERN}>"

#: For each server: what its configuration files hold, and which of its functions it finds.
SERVERS = {
    "stock": ({"config.xml": STOCK}, ["stock"]),
    "no pattern": ({"config.xml": ""}, []),
    "two patterns": ({"config.xml": STOCK + SECOND}, ["stock", "more"]),
    "absolute pattern": ({"config.xml": f"<{PATTERN}>{{etc}}/more/*.xml</{PATTERN}>"}, ["more"]),
    "replaced before": ({"config.xml": STOCK, "config.d/a.xml": SECOND}, ["more"]),
    "replaced after": ({"config.xml": STOCK, "config.d/z.xml": SECOND}, ["more"]),
    "replaced by attribute": (
        {"config.xml": STOCK, "config.d/z.xml": SECOND.replace(">", " replace='1'>", 1)},
        ["more"],
    ),
    "added": ({"config.xml": STOCK, "conf.d/z.xml": STOCK + SECOND}, ["stock", "more"]),
    "conf.d beside": ({"config.xml": STOCK, "conf.d/z.xml": "<timezone>UTC</timezone>"}, ["stock"]),
}


def ask(data: Path, etc: Path) -> tuple[list[str], list[str]]:
    """The functions that an engine has loaded, and those of ours and theirs that answer."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", ENGINE, data, etc / "config.xml", "stock", "more"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded, called = json.loads(result.stdout.splitlines()[-1])
    return loaded, called


@pytest.mark.parametrize("name", SERVERS)
def test_foreign_functions_survive(tmp_path: Path, name: str) -> None:
    files, theirs = SERVERS[name]
    etc, data = tmp_path / "etc", tmp_path / "data"
    for folder in (etc / "config.d", etc / "conf.d", etc / "more", data / "user_scripts"):
        folder.mkdir(parents=True)
    script = data / "user_scripts" / "echo.sh"
    script.write_text('#!/bin/sh\nwhile read row; do echo "answer $row"; done\n')
    script.chmod(0o755)
    (etc / "stock_function.xml").write_text(FUNCTION.format(name="stock"))
    (etc / "more" / "more.xml").write_text(FUNCTION.format(name="more"))
    for file, content in files.items():
        paths = (
            f"<path>{data}/</path><user_scripts_path>{data}/user_scripts/</user_scripts_path>"
            if file == "config.xml"
            else ""
        )
        (etc / file).write_text(f"<clickhouse>{paths}{content.format(etc=etc)}</clickhouse>")
    assert ask(data, etc) == (sorted(theirs), theirs)

    server = discover(etc, data)
    settings = Settings(bundle=tmp_path, runtime_dir=data / "run", log_file=data / "log")
    place(make_plan(server, settings, interpreter=Path(sys.executable), pool_size=2), None)
    ours = [function.name for function in catalog.FUNCTIONS]
    assert ask(data, etc) == (sorted([*theirs, *ours]), theirs)
