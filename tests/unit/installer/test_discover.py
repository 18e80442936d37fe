from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import discover
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


def write(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_stock_configuration(config: Path, data: Path) -> None:
    write(config / "config.xml", STOCK.format(data=data))
    server = discover(config, data)
    assert server.user_scripts == data / "user_scripts"
    assert server.user_files == data / "user_files"


def test_nothing_configured_means_below_the_data_folder(config: Path, data: Path) -> None:
    write(config / "config.xml", "<yandex/>")
    assert discover(config, data).user_scripts == data / "user_scripts"
    assert discover(config, data).user_files == data / "user_files"


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
    ],
)
def test_merging(config: Path, data: Path, drop_ins: dict[str, str], expected: str) -> None:
    write(
        config / "config.xml",
        "<clickhouse><user_scripts_path>/stock/</user_scripts_path></clickhouse>",
    )
    for name, folder in drop_ins.items():
        write(
            config / name,
            f"<clickhouse><user_scripts_path>{folder}/</user_scripts_path></clickhouse>",
        )
    assert discover(config, data).user_scripts == Path(expected)


def test_removed_setting_falls_back(config: Path, data: Path) -> None:
    write(config / "config.xml", STOCK.format(data="/elsewhere"))
    write(
        config / "config.d" / "a.xml",
        "<clickhouse><path remove='1'/><user_scripts_path remove='remove'/></clickhouse>",
    )
    server = discover(config, data)
    assert server.user_scripts == data / "user_scripts"
    assert server.user_files == Path("/elsewhere/user_files")


def test_symlinked_data_folder_is_the_same_folder(config: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    write(config / "config.xml", STOCK.format(data=tmp_path / "link"))
    assert discover(config, data).data_dir == data


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "add --standalone"),
        ({"config.yaml": "path: /data"}, "config.yaml is not read"),
        ({"config.xml": "<clickhouse>"}, "no valid XML"),
        ({"config.xml": "<config/>"}, "wants <clickhouse>"),
        ({"config.xml": "<clickhouse/>", "config.d/f.xml": "<functions/>"}, "f.xml: its root is"),
        ({"config.xml": STOCK.format(data="/other")}, "name that folder with --data-dir"),
        (
            {"config.xml": "<clickhouse><user_files_path from_env='X'/></clickhouse>"},
            "only the server can",
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
            {"config.xml": "<clickhouse/>", "config.d/a.yml": "user_scripts_path: /x"},
            "YAML is not read",
        ),
    ],
)
def test_refuses_to_guess(config: Path, data: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        write(config / name, content)
    with pytest.raises(InstallError, match=message):
        discover(config, data)


def test_yaml_about_other_things_is_no_obstacle(config: Path, data: Path) -> None:
    write(config / "config.xml", STOCK.format(data=data))
    write(config / "config.d" / "a.yaml", "logger:\n  path: /var/log\nmax_connections: 5\n")
    assert discover(config, data).user_scripts == data / "user_scripts"
