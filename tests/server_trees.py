"""Configurations of ClickHouse servers as they are met, each with functions of its own.

A tree is what its files hold; `{etc}` and `{data}` stand for its folders. Every server has
the same two definitions lying around, `stock_function.xml` beside its main file and
`more/more.xml`; which of them it loads is decided by its configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATTERN = "user_defined_executable_functions_config"
STOCK = f"<{PATTERN}>*_function.*ml</{PATTERN}>"
MORE = f"<{PATTERN}>more/*.xml</{PATTERN}>"

PATHS = """
    <path>{data}/</path>
    <tmp_path>{data}/tmp/</tmp_path>
    <user_files_path>{data}/user_files/</user_files_path>
    <user_scripts_path>{data}/user_scripts/</user_scripts_path>
    <format_schema_path>{data}/format_schemas/</format_schema_path>"""

#: What a server of the 24 and 25 series is delivered with, as far as it may matter here.
CONFIG_24 = (
    """<?xml version="1.0"?>
<!-- comments stand anywhere -->
<clickhouse>
    <logger>
        <level>warning</level>
        <console>0</console>
    </logger>
    <http_port>8123</http_port>
    <tcp_port>9000</tcp_port>
    <mysql_port>9004</mysql_port>
    <interserver_http_port>9009</interserver_http_port>
    <max_concurrent_queries>1000</max_concurrent_queries>
    <mark_cache_size>5368709120</mark_cache_size>"""
    + PATHS
    + """
    <user_directories>
        <users_xml>
            <path>users.xml</path>
        </users_xml>
        <local_directory>
            <path>{data}/access/</path>
        </local_directory>
    </user_directories>
    <default_profile>default</default_profile>
    <default_database>default</default_database>
    <mlock_executable>true</mlock_executable>
    <remote_servers>
        <default>
            <shard><replica><host>localhost</host><port>9000</port></replica></shard>
        </default>
    </remote_servers>
    <macros incl="macros" optional="true"/>
    <query_log>
        <database>system</database>
        <table>query_log</table>
    </query_log>
    <dictionaries_config>*_dictionary.*ml</dictionaries_config>
    """
    + STOCK
    + """
</clickhouse>
"""
)

#: The 26 series: more sections, and folders that are not below `path` by default.
CONFIG_26 = CONFIG_24.replace(
    "    <default_profile>",
    """    <user_defined_path>{data}/user_defined/</user_defined_path>
    <top_level_domains_path>{data}/top_level_domains/</top_level_domains_path>
    <processors_profile_log>
        <database>system</database>
        <table>processors_profile_log</table>
    </processors_profile_log>
    <default_profile>""",
)

USERS = """<clickhouse>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password></password>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
</clickhouse>
"""

CONFIG_YAML = f"""# a server that is configured in YAML
logger:
  level: warning
  console: 0
http_port: 8123
path: {{data}}/
tmp_path: {{data}}/tmp/
user_files_path: {{data}}/user_files/
user_scripts_path: "{{data}}/user_scripts/"
user_directories:
  users_xml:
    path: users.xml
{PATTERN}: '*_function.*ml'
"""


def drop_in(content: str) -> str:
    return f"<clickhouse>{content}</clickhouse>"


@dataclass(frozen=True)
class Tree:
    """One server: its files, the functions it finds, and where its scripts are."""

    files: Mapping[str, str]
    functions: tuple[str, ...]
    patterns: tuple[str, ...]
    scripts: str = "{data}/user_scripts"

    def write(self, etc: Path, data: Path) -> None:
        """Make the server's folders."""
        scripts = Path(self.scripts.format(etc=etc, data=data))
        for folder in (etc / "more", data / "user_files", scripts):
            folder.mkdir(parents=True, exist_ok=True)
        everything = {
            "stock_function.xml": FUNCTION.format(name="stock"),
            "more/more.xml": FUNCTION.format(name="more"),
            "users.xml": USERS,
            **{
                name: content.replace("{etc}", str(etc)).replace("{data}", str(data))
                for name, content in self.files.items()
            },
        }
        for name, content in everything.items():
            path = etc / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        script = scripts / "echo.sh"
        script.write_text('#!/bin/sh\nwhile read row; do echo "answer $row"; done\n')
        script.chmod(0o755)


FUNCTION = """<functions><function>
    <type>executable_pool</type><name>{name}</name><return_type>String</return_type>
    <argument><type>String</type></argument><format>TabSeparated</format>
    <command>echo.sh</command>
</function></functions>
"""

_STOCK = ("*_function.*ml",)
_MORE = ("more/*.xml",)

TREES = {
    "stock of 24.8": Tree({"config.xml": CONFIG_24}, ("stock",), _STOCK),
    "stock of 25.8 with its older pattern": Tree(
        {"config.xml": CONFIG_24.replace("*_function.*ml", "*_function.xml")},
        ("stock",),
        ("*_function.xml",),
    ),
    "stock of 26": Tree({"config.xml": CONFIG_26}, ("stock",), _STOCK),
    "old root": Tree(
        {"config.xml": CONFIG_24.replace("clickhouse>", "yandex>")}, ("stock",), _STOCK
    ),
    "no pattern": Tree({"config.xml": CONFIG_24.replace(STOCK, "")}, (), ()),
    "two patterns": Tree(
        {"config.xml": CONFIG_24.replace(STOCK, STOCK + MORE)}, ("stock", "more"), (*_STOCK, *_MORE)
    ),
    "absolute pattern": Tree(
        {"config.xml": CONFIG_24.replace("*_function.*ml", "{etc}/more/*.xml")},
        ("more",),
        ("{etc}/more/*.xml",),
    ),
    "pattern replaced by an earlier drop-in": Tree(
        {"config.xml": CONFIG_24, "config.d/a.xml": drop_in(MORE)}, ("more",), _MORE
    ),
    "pattern replaced by a later drop-in": Tree(
        {"config.xml": CONFIG_24, "config.d/z.xml": drop_in(MORE)}, ("more",), _MORE
    ),
    "pattern replaced by its attribute": Tree(
        {
            "config.xml": CONFIG_24,
            "config.d/z.xml": drop_in(MORE.replace(">", " replace='1'>", 1)),
        },
        ("more",),
        _MORE,
    ),
    "pattern removed": Tree(
        {"config.xml": CONFIG_24, "conf.d/z.xml": drop_in(f"<{PATTERN} remove='1'/>")}, (), ()
    ),
    "patterns added in conf.d": Tree(
        {"config.xml": CONFIG_24, "conf.d/z.xml": drop_in(STOCK + MORE)},
        ("stock", "more"),
        (*_STOCK, *_MORE),
    ),
    "conf.d beside": Tree(
        {"config.xml": CONFIG_24, "conf.d/z.xml": drop_in("<timezone>UTC</timezone>")},
        ("stock",),
        _STOCK,
    ),
    "scripts elsewhere": Tree(
        {
            "config.xml": CONFIG_24,
            "config.d/paths.xml": drop_in(
                "<user_scripts_path>{data}/../scripts/</user_scripts_path>"
            ),
        },
        ("stock",),
        _STOCK,
        "{data}/../scripts",
    ),
    "drop-ins in YAML": Tree(
        {
            "config.xml": CONFIG_24,
            "config.d/paths.yaml": "user_scripts_path: {data}/../scripts/\n",
            "config.d/more.yml": f"{PATTERN}: more/*.xml\n",
        },
        ("more",),
        _MORE,
        "{data}/../scripts",
    ),
    "all in YAML": Tree({"config.yaml": CONFIG_YAML}, ("stock",), _STOCK),
    "YAML with a root and a list": Tree(
        {
            "config.yaml": "clickhouse:\n"
            + CONFIG_YAML.replace("'*_function.*ml'", "['*_function.*ml', 'more/*.xml']")
            .replace("\n", "\n  ")
            .rstrip()
            + "\n"
        },
        ("stock", "more"),
        (*_STOCK, *_MORE),
    ),
    "startup scripts of its own": Tree(
        {
            "config.xml": CONFIG_26,
            "config.d/startup.xml": drop_in(
                "<startup_scripts><scripts><query>SELECT 1</query></scripts></startup_scripts>"
            ),
        },
        ("stock",),
        _STOCK,
    ),
}


@dataclass(frozen=True)
class State:
    """Every file, folder and link below some folders: kind, mode, owner and content."""

    entries: Mapping[str, tuple[str, int, int, int]] = field(default_factory=dict)


def state(*folders: Path) -> State:
    """The state of `folders`."""
    entries = {}
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            if not path.exists() and not path.is_symlink():
                continue
            status = path.lstat()
            content = (
                str(path.readlink())
                if path.is_symlink()
                else hashlib.sha256(path.read_bytes()).hexdigest()
                if path.is_file()
                else "folder"
            )
            entries[str(path)] = (content, status.st_mode, status.st_uid, status.st_gid)
    return State(entries)
