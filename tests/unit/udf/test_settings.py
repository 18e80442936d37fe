import json
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.udf.errors import SettingsError
from clickhouse_clip.udf.settings import Settings

SETTINGS = Settings(
    bundle=Path("/bundle"),
    runtime_dir=Path("/run/clip"),
    log_file=Path("/log/encoder.log"),
    image_roots=(Path("/pictures"), Path("/more")),
)


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(SETTINGS.to_json())
    assert Settings.load(file) == SETTINGS


def test_what_a_file_leaves_out_has_its_default() -> None:
    text = json.dumps({"bundle": "/b", "runtime_dir": "/r", "log_file": "/l"})
    assert Settings.from_json(text) == Settings(Path("/b"), Path("/r"), Path("/l"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bundle", "relative"),
        ("bundle", 5),
        ("image_roots", "/pictures"),
        ("image_roots", ["relative"]),
        ("precision", "fp8"),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("device", "cuda:-1"),
        ("device", "cuda:1 "),
        ("device", 0),
        ("threads", -1),
        ("threads", True),
        ("threads", "2"),
        ("normalize", 1),
        ("max_pixels", 0),
        ("max_bytes", 0),
        ("grace_seconds", -1),
        ("cache_texts", -1),
        ("log_max_bytes", 100),
        ("max_pixel", 5),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(SETTINGS.to_json()), name: value}))
    with pytest.raises(SettingsError, match=name) as error:
        Settings.load(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.json.*install-udfs"):
        Settings.load(tmp_path / "none.json")
