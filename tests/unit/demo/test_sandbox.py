from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.demo.sandbox import Sandbox
from clickhouse_clip.udf.errors import InstallError


def test_a_folder_that_no_tour_has_made_is_not_thrown_away(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(InstallError, match="choose another --output"):
        Sandbox(folder, "demo", tmp_path).install()
    assert (folder / "precious").exists()


def test_a_missing_bundle_is_the_installers_message(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"^/nowhere: no model bundle"):
        Sandbox(tmp_path / "server", "/nowhere", tmp_path).install()


def test_without_a_service_nothing_was_encoded(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "server", "demo", tmp_path)
    assert sandbox.rows_encoded() == 0
    sandbox.stop_encoder()
