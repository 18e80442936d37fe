from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.engines import openvino as engine
from clickhouse_clip.udf.engines.openvino import OpenVinoTower, load, resolve_precision
from clickhouse_clip.udf.errors import BundleError
from tests import toy
from tests.processes import wait_until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def normalised(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_a_tower_encodes_batches_of_any_size(bundle: Path) -> None:
    tower = load(bundle, load_manifest(bundle), "image", precision="fp32", threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (5, toy.SIDE, toy.SIDE, 3), np.uint8)
    expected = np.stack([toy.image_vector(one) for one in pixels])
    for count in (5, 1, 3):
        vectors = tower.encode(pixels[:count])
        assert vectors.dtype == np.float32
        assert np.abs(normalised(vectors) - expected[:count]).max() < 1e-5


def test_an_empty_batch_gives_no_rows(bundle: Path) -> None:
    tower = load(bundle, load_manifest(bundle), "text", threads=1)
    assert tower.encode(np.empty((0, 8), np.int64)).shape == (0, toy.DIM)


def test_embeddings_are_the_caller_s_own(bundle: Path) -> None:
    tower = load(bundle, load_manifest(bundle), "image", precision="fp32", threads=1)
    first = tower.encode(np.full((1, toy.SIDE, toy.SIDE, 3), 200, np.uint8))
    before = first.copy()
    tower.encode(np.zeros((1, toy.SIDE, toy.SIDE, 3), np.uint8))
    assert (first == before).all()


def test_batches_need_not_be_contiguous(bundle: Path) -> None:
    tower = load(bundle, load_manifest(bundle), "image", precision="fp32", threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, toy.SIDE, toy.SIDE, 3), np.uint8)
    assert np.allclose(tower.encode(pixels[::2]), tower.encode(pixels)[::2], rtol=1e-5)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_only_the_tower_s_own_files_are_needed(tmp_path: Path, kind: str) -> None:
    bundle = toy.make_bundle(tmp_path / "bundle")
    manifest = load_manifest(bundle)
    other = {"text": "image", "image": "text"}[kind]
    (bundle / f"{other}.bin").unlink()
    load(bundle, manifest, kind, threads=1)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=f"{other}.bin"):
        load(bundle, manifest, other, threads=1)  # type: ignore[arg-type]


def test_a_damaged_tower_is_refused(tmp_path: Path) -> None:
    bundle = toy.make_bundle(tmp_path / "bundle")
    manifest = load_manifest(bundle)
    weights = bytearray((bundle / "text.bin").read_bytes())
    weights[100] ^= 255
    (bundle / "text.bin").write_bytes(weights)
    with pytest.raises(BundleError, match="SHA-256"):
        load(bundle, manifest, "text", threads=1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 avx512f avx512_bf16", "bf16"),
        ("avx512f amx_bf16 amx_tile", "bf16"),
        ("avx2 avx512f", "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu sse2 {flags}\n")
    monkeypatch.setattr(engine, "_CPUINFO", cpuinfo)
    assert resolve_precision("auto") == expected
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"


def test_a_machine_that_does_not_tell_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "_CPUINFO", tmp_path / "none")
    assert resolve_precision("auto") == "fp32"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )


def test_importing_the_engine_loads_no_openvino() -> None:
    done = run("import sys, clickhouse_clip.udf.engines.openvino; print('openvino' in sys.modules)")
    assert done.stdout == "False\n"


def test_loading_prints_nothing_and_sends_no_telemetry(bundle: Path) -> None:
    done = run(
        "import sys, pathlib\n"
        "from clickhouse_clip.udf.bundle import load_manifest\n"
        "from clickhouse_clip.udf.engines.openvino import load\n"
        f"bundle = pathlib.Path({str(bundle)!r})\n"
        "load(bundle, load_manifest(bundle), 'text', threads=1)\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    assert done.stdout == done.stderr == ""


FREE = threading.Event()
FREE.set()


class Request:
    """An inference request that may be held up."""

    def __init__(self, may_run: threading.Event) -> None:
        self.may_run = may_run
        self.busy = threading.Event()

    def infer(self, inputs: list[NDArray[Any]], **_: Any) -> list[NDArray[Any]]:
        self.busy.set()
        assert self.may_run.wait(10)
        return [inputs[0].astype(np.float32)]


def test_a_second_model_serves_a_second_thread() -> None:
    may_run, made = threading.Event(), []

    def compile_() -> Request:
        made.append(Request(may_run if not made else FREE))
        return made[-1]

    warmed: list[Request] = []
    tower = OpenVinoTower(compile_, warmed.append, 2)
    with ThreadPoolExecutor(3) as pool:
        held_up = pool.submit(tower.encode, np.full((1, 2), 1))
        assert made[0].busy.wait(10)
        waiting = pool.submit(tower.encode, np.full((1, 2), 2))
        assert len(made) == 1
        for _ in range(3):
            tower.serve_two()
        assert waiting.result(10).tolist() == [[2, 2]]  # by the second
        assert warmed == made[1:]
        assert not held_up.done()
        may_run.set()
        assert held_up.result(10).tolist() == [[1, 1]]
        results = pool.map(tower.encode, [np.full((1, 2), value) for value in range(50)])
        assert [each.tolist() for each in results] == [[[n, n]] for n in range(50)]
    assert len(made) == 2


def test_one_model_serves_who_came_first() -> None:
    may_run, order = threading.Event(), []

    class Noting(Request):
        def infer(self, inputs: list[NDArray[Any]], **options: Any) -> list[NDArray[Any]]:
            order.append(int(inputs[0][0, 0]))
            return super().infer(inputs, **options)

    request = Noting(may_run)
    tower = OpenVinoTower(lambda: request, lambda _: None, 2, twice=False)
    tower.serve_two()

    def bulk() -> None:
        for value in range(3):
            tower.encode(np.full((1, 2), value))

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(bulk)
        assert request.busy.wait(10)
        search = pool.submit(tower.encode, np.full((1, 2), 9))
        wait_until(lambda: tower._turns, "the search does not wait")
        may_run.set()
        running.result(10)
        search.result(10)
    assert order == [0, 9, 1, 2]


def test_without_room_for_a_second_model_the_first_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = []

    def compile_() -> Request:
        if made:
            raise MemoryError("no room")
        made.append(Request(FREE))
        return made[-1]

    tower = OpenVinoTower(compile_, lambda _: None, 2)
    tower.serve_two()
    wait_until(lambda: caplog.messages, "no warning")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(tower.encode, [np.full((1, 2), value) for value in range(50)]))
    assert [each.tolist() for each in results] == [[[n, n]] for n in range(50)]
    tower.serve_two()
    assert len(caplog.messages) == 1
    assert "no room" in caplog.text


def test_without_a_thread_for_a_second_model_the_first_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tower = OpenVinoTower(lambda: Request(FREE), lambda _: None, 2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        tower.serve_two()
    assert tower.encode(np.full((1, 2), 5)).tolist() == [[5, 5]]
    assert "can't start new thread" in caplog.text
