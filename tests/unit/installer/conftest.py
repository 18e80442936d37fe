"""A server's folders, and a bundle of which only the manifest exists: nothing else is read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import Server, standalone
from clickhouse_clip.installer.plan import Plan, make_plan
from clickhouse_clip.installer.record import Options
from clickhouse_clip.udf.bundle import FILES, MANIFEST, FileEntry, ImageSpec, Manifest, TextSpec
from clickhouse_clip.udf.settings import Settings


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    manifest = Manifest(
        model="ViT-tiny",
        weights="none",
        weights_sha256="0" * 64,
        embedding_dim=4,
        text=TextSpec(context_length=77, vocab_size=100, causal=True, pad_id=0),
        image=ImageSpec(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "shortest", 0),
        files={name: FileEntry("0" * 64, 1) for name in FILES},
        made_with={},
        identity="",
    )
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return standalone(tmp_path / "config", tmp_path / "data")


@pytest.fixture
def settings(server: Server, bundle: Path) -> Settings:
    return Settings(
        bundle=bundle,
        runtime_dir=server.data_dir / "clickhouse-clip" / "run",
        log_file=server.data_dir / "clickhouse-clip" / "log" / "encoder.log",
        image_roots=(server.user_files,),
    )


@pytest.fixture
def plan(server: Server, settings: Settings) -> Plan:
    return make_plan(server, settings, interpreter=Path(sys.executable), options=Options(8))


@pytest.fixture(autouse=True)
def _no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listens on this machine is none of the tests' business."""
    monkeypatch.setenv("CLICKHOUSE_HOST", "localhost")
    for name in ("CLICKHOUSE_HOST", "CLICKHOUSE_PORT", "CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("clickhouse_clip.installer.verify.Address.answers", lambda _: False)
