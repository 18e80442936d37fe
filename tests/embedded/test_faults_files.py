"""Files are removed, changed, half written or cannot be written while the service works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clickhouse_clip.udf.bundle import FILES, MANIFEST
from tests import toy
from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError
from tests.processes import wait_for_end, wait_until
from tests.toy import image_vector, text_vector

pytestmark = pytest.mark.any_engine

SCALE = 5.0

#: What a query may say while a bundle's files do not fit each other.
DAMAGED = r"manifest|SHA-256|no model bundle|cannot be read|cannot load it|dimensions"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for these tests alone, which change it."""
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "mine")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, with files of the same sizes."""
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "other", scale=SCALE, name="oth")


@pytest.fixture
def good(engine: Engine, server: Server, tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundle, from which it is restored in the end."""
    copy = shutil.copytree(server.settings.bundle, tmp_path / "good")
    assert_works(engine)
    yield copy
    for name in (*FILES, MANIFEST):
        server.settings.bundle.mkdir(exist_ok=True)
        overwrite(copy / name, server.settings.bundle / name)
    assert_works(engine)


def assert_works(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))
    assert_vectors(engine.value("SELECT encode_image('3.png')"), image_vector(pixels(3)))


def overwrite(source: Path, target: Path) -> None:
    """Write into the file that is there, as `cp` and `rsync --inplace` do."""
    with target.open("r+b" if target.exists() else "wb") as file:
        file.write(source.read_bytes())
        file.truncate()


def other_vector(vector: Any) -> Any:
    """What the other model makes of the same row."""
    scaled = np.array(vector, np.float32) * np.array([SCALE] + [1] * (toy.DIM - 1), np.float32)
    return scaled / np.linalg.norm(scaled)


class Client(threading.Thread):
    """Runs one query after another, each of its own texts, and says which model answered."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(daemon=True)
        self._engine = engine
        self._prefix = name
        self._ended = threading.Event()
        self.answers: list[str] = []
        self.start()

    def run(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            self.answers.append(self._ask(f"{self._prefix}{number}x"))

    def _ask(self, prefix: str) -> str:
        """`mine`, `other`, `wrong`, or the error."""
        sql = f"SELECT number, encode_text('{prefix}' || toString(number)) FROM numbers(300)"
        try:
            found = self._engine.query(sql)
        except QueryError as error:
            return str(error)
        models = set()
        for number, vector in found:
            mine = text_vector(f"{prefix}{number}".encode())
            if np.allclose(vector, mine, atol=2e-6):
                models.add("mine")
            elif np.allclose(vector, other_vector(mine), atol=2e-6):
                models.add("other")
            else:
                models.add("wrong")
        return "wrong" if len(found) != 300 or len(models) != 1 else models.pop()

    def wait(self, more: int) -> None:
        """Until so many more queries have been answered."""
        wanted = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= wanted, "the client got no answers")

    def stop(self) -> list[str]:
        self._ended.set()
        self.join(60)
        assert not self.is_alive()
        return self.answers


def test_a_bundle_removed_under_a_loaded_model(server: Server, engine: Engine, good: Path) -> None:
    """What is loaded goes on; nothing else is needed until a service has to start."""
    shutil.rmtree(server.settings.bundle)
    assert_works(engine)
    server.stop_encoder()
    with pytest.raises(QueryError, match="no model bundle"):
        engine.query("SELECT encode_text('x')")
    shutil.copytree(good, server.settings.bundle)


@pytest.mark.parametrize("name", ["text.bin", "text.xml"])
def test_a_towers_file_is_written_into_while_queries_run(
    server: Server, engine: Engine, good: Path, other: Path, name: str
) -> None:
    """Weights are mapped: without a look at the file, its new bytes would be encoded with."""
    client = Client(engine, f"i{name[-1]}")
    client.wait(5)
    overwrite(other / name, server.settings.bundle / name)
    client.wait(10)
    overwrite(good / name, server.settings.bundle / name)
    client.wait(5)
    answers = client.stop()
    assert answers[0] == answers[-1] == "mine"
    for answer in set(answers) - {"mine"}:
        assert "SHA-256" in answer or "bytes, the manifest says" in answer


def test_a_towers_file_is_cut_short_while_queries_run(
    server: Server, engine: Engine, good: Path
) -> None:
    """As a copy that has just begun; whoever reads its mapped pages gets SIGBUS."""
    client = Client(engine, "c")
    client.wait(5)
    with (server.settings.bundle / "text.bin").open("r+b") as file:
        file.truncate(1000)
    client.wait(10)
    overwrite(good / "text.bin", server.settings.bundle / "text.bin")
    client.wait(5)
    answers = client.stop()
    assert answers[0] == answers[-1] == "mine"
    for answer in set(answers) - {"mine"}:
        assert "bytes, the manifest says" in answer or "SHA-256" in answer


def test_another_model_is_copied_over_this_one_while_queries_run(
    server: Server, engine: Engine, good: Path, other: Path
) -> None:
    """File by file, in place: an answer is of either model as a whole, or it is an error."""
    client = Client(engine, "o")
    for source in (other, good, other):
        client.wait(4)
        for name in sorted((*FILES, MANIFEST)):
            overwrite(source / name, server.settings.bundle / name)
            client.wait(1)
    client.wait(5)
    answers = client.stop()
    assert answers[0] == "mine"
    assert answers[-1] == "other"
    for answer in set(answers) - {"mine", "other"}:
        assert answer != "wrong"
        assert any(word in answer for word in DAMAGED.split("|")), answer


@pytest.mark.usefixtures("good")
def test_an_upgrade_while_queries_run_loses_none(
    server: Server, engine: Engine, other: Path
) -> None:
    """`install-udfs` with another model, to and fro; each query is answered by one of them."""
    mine = server.settings.bundle
    clients = [Client(engine, f"u{number}") for number in range(3)]
    for bundle in (other, mine):
        for client in clients:
            client.wait(2)
        server.install(bundle, "--precision", "fp32")
    for client in clients:
        client.wait(4)
    answers = [client.stop() for client in clients]
    for each in answers:
        assert set(each) <= {"mine", "other"}
    assert "silent" not in server.settings.log_file.read_text()
    assert all(each[0] == each[-1] == "mine" for each in answers)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own at `folder`, of mode 0700."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root, and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_runtime_folder_is_the_querys_error(server: Server, engine: Engine) -> None:
    server.stop_encoder()
    runtime = server.settings.runtime_dir
    # Room for itself and the lock.
    with (
        mounted(runtime, "size=64k,nr_inodes=2"),
        pytest.raises(QueryError, match="No space left"),
    ):
        engine.query("SELECT encode_text('x')")
    assert_works(engine)


def test_a_read_only_runtime_folder_is_the_querys_error(server: Server, engine: Engine) -> None:
    server.stop_encoder()
    with (
        mounted(server.settings.runtime_dir, "ro,size=64k"),
        pytest.raises(QueryError, match="Read-only file system"),
    ):
        engine.query("SELECT encode_text('x')")
    assert_works(engine)


def test_a_runtime_folder_that_is_lost_while_serving(server: Server, engine: Engine) -> None:
    assert_works(engine)
    report = server.status()
    assert report is not None
    shutil.rmtree(server.settings.runtime_dir)
    assert_works(engine)
    wait_for_end(int(report["pid"]))
    assert_works(engine)


@pytest.mark.parametrize("kind", ["full", "of no room for another file"])
def test_a_log_on_a_full_disk_fails_no_query(server: Server, engine: Engine, kind: str) -> None:
    folder = server.settings.log_file.parent
    server.stop_encoder()
    options = "size=64k" if kind == "full" else "size=64k,nr_inodes=2"
    with mounted(folder, options):
        (folder / "ballast").write_bytes(b"")
        if kind == "full":
            with pytest.raises(OSError, match="No space"):
                (folder / "ballast").write_bytes(bytes(1 << 20))
        assert_works(engine)
        with pytest.raises(QueryError, match=r"none\.png"):
            engine.query("SELECT encode_image('none.png')")
        # There is room again, and the log goes on.
        (folder / "ballast").unlink()
        with pytest.raises(QueryError, match=r"none\.png"):
            engine.query("SELECT encode_image('none.png')")
        assert "none.png" in server.settings.log_file.read_text()
        server.stop_encoder()
    assert_works(engine)


def test_a_log_that_takes_no_byte_fails_no_query(server: Server, engine: Engine) -> None:
    """What can be tried without root: /dev/full is a disk that is always full."""
    content = server.settings_file.read_text()
    server.settings_file.write_text(json.dumps({**json.loads(content), "log_file": "/dev/full"}))
    try:
        assert_works(engine)
        with pytest.raises(QueryError, match=r"none\.png"):
            engine.query("SELECT encode_image('none.png')")
    finally:
        server.settings_file.write_text(content)
    assert_works(engine)


def test_settings_that_are_half_written_while_queries_run(server: Server, engine: Engine) -> None:
    """Nothing loaded is thrown away for a file that cannot be read; new workers say so."""
    content = server.settings_file.read_text()
    assert_works(engine)
    client = Client(engine, "h")
    client.wait(3)
    server.settings_file.write_text(content[: len(content) // 2])
    try:
        client.wait(3)
    finally:
        server.settings_file.write_text(content)
    client.wait(3)
    answers = client.stop()
    assert answers[0] == answers[-1] == "mine"
    for answer in set(answers) - {"mine"}:
        assert "runtime_dir" in answer
    assert_works(engine)
