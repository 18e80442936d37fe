from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import Server, standalone
from clickhouse_clip.installer.plan import Plan, make_plan
from clickhouse_clip.installer.record import Options
from clickhouse_clip.udf.errors import InstallError
from clickhouse_clip.udf.settings import Settings

PYTHON = Path("/opt/clip/bin/python3")


def names(plan: Plan, server: Server) -> dict[str, int]:
    root = server.config_dir.parent
    return {str(file.path.relative_to(root)): file.mode for file in plan.files}


def test_files_and_modes(server: Server, settings: Settings, plan: Plan) -> None:
    expected = {
        "config/clickhouse-clip/settings.json": 0o644,
        "data/user_scripts/encode_text.py": 0o755,
        "data/user_scripts/encode_image.py": 0o755,
        "config/clickhouse-clip/functions.xml": 0o644,
        "config/config.d/clickhouse-clip.xml": 0o644,
    }
    assert names(plan, server) == expected
    # What makes a server look for the functions comes after all that they need.
    assert list(names(plan, server)) == list(expected)
    whole = make_plan(
        server, settings, interpreter=PYTHON, options=Options(8), with_server_config=True
    )
    assert names(whole, server) == expected | {"config/config.xml": 0o644}


def test_is_a_value_and_touches_nothing(server: Server, settings: Settings, plan: Plan) -> None:
    assert not server.config_dir.exists()
    assert not server.data_dir.exists()
    first, second = (
        make_plan(server, settings, interpreter=PYTHON, options=Options(8)) for _ in range(2)
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first != plan


def test_settings_are_the_ones_given(settings: Settings, plan: Plan) -> None:
    (file,) = [file for file in plan.files if file.path.name == "settings.json"]
    assert Settings.from_json(file.content) == settings


def test_every_file_has_its_folder_in_the_plan(plan: Plan) -> None:
    assert {file.path.parent for file in (*plan.files,)} <= set(plan.folders)
    assert plan.record.parent in plan.folders


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        ("/etc/click*", "/data", "pattern"),
        ("/etc/click{1,2}", "/data", "pattern"),
        ("/etc/new\nline", "/data", "control characters"),
        ("/etc", "/da\x07ta", "control characters"),
        ("/etc", "/da\udcffta", "no UTF-8"),
    ],
)
def test_paths_that_a_configuration_cannot_hold(
    settings: Settings, config: str, data: str, message: str
) -> None:
    with pytest.raises(InstallError, match=message):
        make_plan(
            standalone(Path(config), Path(data)), settings, interpreter=PYTHON, options=Options(8)
        )


def test_warm_up_comes_last(server: Server, settings: Settings) -> None:
    plan = make_plan(server, settings, interpreter=PYTHON, options=Options(warmup=True))
    last = plan.files[-1]
    assert last.path.parent.name == "config.d"
    # Behind the startup scripts of all others: one that fails ends those after it.
    assert last.path.name > "zz"
    assert "SELECT length(encode_text('warm'))" in last.content


def test_prefix(server: Server, settings: Settings) -> None:
    plan = make_plan(server, settings, interpreter=PYTHON, options=Options(prefix="clip_"))
    assert plan.functions[0] == "clip_encode_text"
    definitions = next(file for file in plan.files if file.path.name == "functions.xml").content
    assert "<name>clip_encode_text</name>" in definitions
    # The worker knows the function by its own name.
    assert "<command>encode_text.py encode_text</command>" in definitions


@pytest.mark.parametrize("prefix", ["1_", "a b", "x-", "ü_", "x'"])
def test_prefixes_that_no_name_can_have(server: Server, settings: Settings, prefix: str) -> None:
    with pytest.raises(InstallError, match="--prefix"):
        make_plan(server, settings, interpreter=PYTHON, options=Options(prefix=prefix))
