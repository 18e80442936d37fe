"""A scratch server for each test module: installed as a user installs it, on the toy model."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clickhouse_clip.installer.cli import main as install_udfs
from clickhouse_clip.udf.launch import request_report
from clickhouse_clip.udf.settings import Settings
from tests import toy
from tests.embedded.engine import Engine, QueryError
from tests.processes import wait_for_end

#: Another interpreter is how the suite runs on another version of the engine.
PYTHON = Path(os.environ.get("ENGINE_PYTHON", sys.executable))


@dataclass(frozen=True)
class Server:
    """A scratch server's folders."""

    root: Path

    @property
    def config_dir(self) -> Path:
        return self.root / "config"

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def user_files(self) -> Path:
        return self.data_dir / "user_files"

    @property
    def settings_file(self) -> Path:
        return self.config_dir / "clickhouse-clip" / "settings.json"

    @property
    def settings(self) -> Settings:
        return Settings.load(self.settings_file)

    def install(self, bundle: Path, *options: str) -> None:
        folders = ["--config-dir", str(self.config_dir), "--data-dir", str(self.data_dir)]
        assert install_udfs(["--bundle", str(bundle), "--standalone", *folders, *options]) == 0

    def make_pictures(self) -> None:
        """0.png to 99.png, and broken.png."""
        for number in range(100):
            save_picture(self.user_files / f"{number}.png", number)
        (self.user_files / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")

    def start_engine(self) -> Engine:
        return Engine(PYTHON, self.data_dir, self.config_dir / "config.xml")

    def status(self) -> dict[str, Any] | None:
        return request_report(str(self.settings.runtime_dir), "status")

    def stop_encoder(self) -> None:
        """End the service and wait until it has gone."""
        report = request_report(str(self.settings.runtime_dir), "stop")
        if report is not None:
            wait_for_end(int(str(report["pid"])))

    def kill_encoder(self) -> int:
        """`kill -9` the service; returns its process id."""
        report = self.status()
        assert report is not None
        os.kill(report["pid"], signal.SIGKILL)
        return int(report["pid"])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.install(bundle, "--precision", "fp32")
    server.make_pictures()
    yield server
    server.stop_encoder()


@pytest.fixture(scope="module")
def engine(server: Server) -> Iterator[Engine]:
    engine = server.start_engine()
    yield engine
    engine.close()


def skip_without_vector_index(engine: Engine) -> None:
    """End the test as skipped on an older engine that was built without such indexes."""
    if "ENGINE_PYTHON" not in os.environ:
        return
    try:
        engine.query(
            "CREATE TABLE probe (v Array(Float32), INDEX i v TYPE "
            "vector_similarity('hnsw', 'cosineDistance', 2)) ENGINE = MergeTree ORDER BY tuple()"
        )
    except QueryError as error:
        # 24.8 has them as an experiment, of another kind.
        if not any(text in str(error) for text in ("Unknown Index type", "index is disabled")):
            raise
        pytest.skip("this embedded engine has no vector_similarity indexes")
    engine.query("DROP TABLE probe")


def pixels(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of picture `number`: 8 x 8, so that preprocessing leaves them as they are."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (toy.SIDE, toy.SIDE, 3), np.uint8)


def save_picture(path: Path, number: int) -> None:
    Image.fromarray(pixels(number)).save(path)


def assert_vectors(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(found, np.float32), np.array(expected), atol=2e-6)
