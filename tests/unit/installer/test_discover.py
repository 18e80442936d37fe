from __future__ import annotations

import os
from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import Folders, Server, discover
from clickhouse_clip.installer.root import Root
from clickhouse_clip.udf.errors import InstallError

STOCK = """<clickhouse>
    <path>{data}/</path>
    <tmp_path>{data}/tmp/</tmp_path>
    <user_files_path>{data}/user_files/</user_files_path>
    <user_scripts_path>{data}/user_scripts/</user_scripts_path>
    <user_defined_executable_functions_config>*_function.*ml</user_defined_executable_functions_config>
</clickhouse>"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def found(config: Path, data: Path | None = None, root: Path | None = None) -> Server:
    return discover(config, Folders(data_dir=data), Root(root))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_stock_configuration(config: Path, data: Path) -> None:
    write(config / "config.xml", STOCK.format(data=data))
    server = found(config, data)
    assert server.user_scripts == data / "user_scripts"
    assert server.user_files == data / "user_files"


def test_nothing_configured_means_below_the_data_folder(config: Path, data: Path) -> None:
    write(config / "config.xml", "<yandex/>")
    assert found(config, data).user_scripts == data / "user_scripts"
    assert found(config, data).user_files == data / "user_files"


@pytest.mark.parametrize(
    ("drop_ins", "expected"),
    [
        pytest.param({"config.d/a.xml": "/a"}, "/a", id="drop-in wins"),
        pytest.param({"config.d/a.xml": "/a", "config.d/b.xml": "/b"}, "/b", id="later name wins"),
        pytest.param({"conf.d/z.xml": "/z", "config.d/a.xml": "/a"}, "/a", id="conf.d comes first"),
        pytest.param({"conf.d/z.conf": "/z"}, "/z", id=".conf is read"),
        pytest.param({"config.d/b.XML": "/b"}, "/b", id="capitals"),
        pytest.param({"config.d/.a.xml": "/a"}, "/stock", id="hidden files are not read"),
        pytest.param({"config.d/a.xml.bak": "/a"}, "/stock", id="other endings are not read"),
        pytest.param({"users.d/a.xml": "/a"}, "/stock", id="other folders are not read"),
        pytest.param({"config.d/a.yml": "yaml:/a"}, "/a", id="YAML is read"),
        pytest.param({"config.d/a.yaml": "yaml:/a", "config.d/b.xml": "/b"}, "/b", id="mixed"),
    ],
)
def test_merging(config: Path, data: Path, drop_ins: dict[str, str], expected: str) -> None:
    write(
        config / "config.xml",
        "<clickhouse><user_scripts_path>/stock/</user_scripts_path></clickhouse>",
    )
    for name, folder in drop_ins.items():
        content = f"<clickhouse><user_scripts_path>{folder}/</user_scripts_path></clickhouse>"
        if folder.startswith("yaml:"):
            content = f"user_scripts_path: {folder.removeprefix('yaml:')}/\n"
        write(config / name, content)
    assert found(config, data).user_scripts == Path(expected)


def test_removed_setting_falls_back(config: Path, data: Path) -> None:
    write(config / "config.xml", STOCK.format(data="/elsewhere"))
    write(
        config / "config.d" / "a.xml",
        "<clickhouse><path remove='1'/><user_scripts_path remove='remove'/></clickhouse>",
    )
    server = found(config, data)
    assert server.user_scripts == data / "user_scripts"
    assert server.user_files == Path("/elsewhere/user_files")


def test_symlinked_data_folder_is_the_same_folder(config: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    write(config / "config.xml", STOCK.format(data=tmp_path / "link"))
    assert found(config, data).data_dir == data


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "add --standalone"),
        ({"config.yaml": "path: ["}, "no valid YAML"),
        ({"config.xml": "<clickhouse>"}, "no valid XML"),
        ({"config.xml": "<config/>"}, "wants <clickhouse>"),
        ({"config.xml": "<clickhouse/>", "config.d/f.xml": "<functions/>"}, "f.xml: its root is"),
        ({"config.xml": STOCK.format(data="/other")}, "name that folder with --data-dir"),
        (
            {"config.xml": "<clickhouse><user_files_path from_env='X'/></clickhouse>"},
            "only the server can resolve",
        ),
        (
            {"config.xml": "<clickhouse><user_scripts_path>x</user_scripts_path></clickhouse>"},
            "is no absolute path",
        ),
        (
            {"config.xml": "<clickhouse><user_files_path> /x </user_files_path></clickhouse>"},
            "is no absolute path",
        ),
        (
            {"config.xml": "<clickhouse><path>/a</path><path>/b</path></clickhouse>"},
            "more than one <path>",
        ),
        (
            {"config.xml": "<clickhouse><include from_zk='/paths'/></clickhouse>"},
            "say it with --user-scripts-dir",
        ),
        (
            {"config.yaml": "user_files_path:\n  '@from_env': X\n"},
            "say it with --user-files-dir",
        ),
    ],
)
def test_refuses_to_guess(config: Path, data: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        write(config / name, content)
    with pytest.raises(InstallError, match=message):
        found(config, data)


def test_path_from_elsewhere_is_asked_for(config: Path, data: Path) -> None:
    write(config / "config.xml", "<clickhouse><path from_env='DATA'/></clickhouse>")
    with pytest.raises(InstallError, match="say it with --data-dir"):
        found(config)
    assert found(config, data).data_dir == data


def test_options_answer_what_only_the_server_knows(config: Path, data: Path) -> None:
    write(
        config / "config.xml",
        "<clickhouse><user_scripts_path incl='a'/><user_files_path from_zk='/b'/></clickhouse>",
    )
    named = Folders(data, Path("/scripts"), Path("/files"))
    server = discover(config, named, Root())
    assert (server.user_scripts, server.user_files) == (Path("/scripts"), Path("/files"))


def test_without_any_path_the_data_is_where_clickhouse_puts_it(config: Path) -> None:
    write(config / "config.xml", "<clickhouse/>")
    server = found(config)
    assert server.data_dir == Path("/var/lib/clickhouse")
    assert server.user_scripts == Path("/var/lib/clickhouse/user_scripts")


def preprocess(config: Path, data: Path, content: str, *more: Path) -> None:
    """What a server writes when it has read its configuration, a second after the last change."""
    files = [config / "config.xml", *more]
    target = data / "preprocessed_configs" / "config.xml"
    names = "".join(f"\n       {file}" for file in files)
    write(target, f"<!-- This file was generated automatically.{names}      -->\n{content}")
    latest = max(file.stat().st_mtime_ns for file in files) + 10**9
    os.utime(target, ns=(latest, latest))


RESOLVED = "<clickhouse><user_scripts_path>/resolved/</user_scripts_path></clickhouse>"


def test_preprocessed_configuration_resolves_what_comes_from_elsewhere(
    config: Path, data: Path
) -> None:
    unresolved = "<clickhouse><user_scripts_path from_zk='/x'/></clickhouse>"
    write(config / "config.xml", unresolved)
    preprocess(config, data, RESOLVED)
    server = found(config, data)
    assert server.preprocessed
    assert server.user_scripts == Path("/resolved")
    # Somebody changed a file since, or added one.
    latest = (data / "preprocessed_configs" / "config.xml").stat().st_mtime_ns + 1
    os.utime(config / "config.xml", ns=(latest, latest))
    with pytest.raises(InstallError, match="missing or older"):
        found(config, data)
    preprocess(config, data, RESOLVED)
    write(config / "config.d" / "new.xml", "<clickhouse/>")
    os.utime(config / "config.d" / "new.xml", ns=(0, 0))
    with pytest.raises(InstallError, match="missing or older"):
        found(config, data)
    preprocess(config, data, RESOLVED, config / "config.d" / "new.xml")
    assert found(config, data).user_scripts == Path("/resolved")
    # A file that is gone changes no file's time.
    (config / "config.d" / "new.xml").unlink()
    with pytest.raises(InstallError, match="missing or older"):
        found(config, data)


def test_preprocessed_configuration_of_another_server_is_not_read(
    config: Path, data: Path, tmp_path: Path
) -> None:
    write(config / "config.xml", STOCK.format(data=data))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "config.xml", "<clickhouse/>")
    preprocess(tmp_path / "other", data, RESOLVED)
    assert found(config, data).user_scripts == data / "user_scripts"


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("false", False)]
)
def test_startup_scripts_that_must_succeed(
    config: Path, data: Path, value: str, expected: bool
) -> None:
    scripts = f"<startup_scripts><throw_on_error>{value}</throw_on_error></startup_scripts>"
    write(config / "config.xml", STOCK.format(data=data))
    write(config / "config.d" / "a.xml", f"<clickhouse>{scripts}</clickhouse>")
    assert found(config).startup_must_succeed is expected


def test_ports(config: Path) -> None:
    write(config / "config.yml", "http_port: 8124\nhttps_port:\n  '@remove': '1'\n")
    server = found(config)
    assert (server.http_port, server.main_config) == (8124, config / "config.yml")


def test_below_a_root(tmp_path: Path) -> None:
    image = tmp_path / "image"
    etc = image / "etc" / "clickhouse-server"
    etc.mkdir(parents=True)
    write(etc / "config.xml", STOCK.format(data="/data/clickhouse"))
    server = found(Path("/etc/clickhouse-server"), None, image)
    assert server.config_dir == Path("/etc/clickhouse-server")
    assert server.user_scripts == Path("/data/clickhouse/user_scripts")
