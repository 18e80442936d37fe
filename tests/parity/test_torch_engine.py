"""The engine of GPUs, on the processor: small models of every kind, and what can go wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from clickhouse_clip.udf import cuda_weights
from clickhouse_clip.udf.bundle import (
    CUDA_FILES,
    CUDA_TOWER_FILES,
    FILES,
    FileEntry,
    ImageSpec,
    Manifest,
    TextSpec,
    describe_file,
)
from clickhouse_clip.udf.engines import torch as engine
from clickhouse_clip.udf.engines.torch import TorchTower, load
from clickhouse_clip.udf.errors import BundleError, DeviceError
from clickhouse_clip.udf.open_clip_models import build_model
from clickhouse_clip.udf.towers import ImageTower, TextTower

CPU = torch.device("cpu")
KINDS: tuple[Literal["text"], Literal["image"]] = ("text", "image")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "custom_text": False,
    "quick_gelu": False,
}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 32, "head_width": 32}
#: A timm model with buffers that its state_dict omits. Its own weights must not be downloaded.
ROTARY = {
    "image_size": 224,
    "timm_model_name": "eva02_tiny_patch14_224",
    "timm_model_pretrained": True,
}


class Model:
    """A model of random weights, and its bundle's part for a GPU in a folder."""

    def __init__(self, folder: Path, config: dict[str, Any], *, float16: bool = False) -> None:
        torch.manual_seed(3)
        self.folder = folder
        self.model = build_model(config)
        size = config["vision_cfg"]["image_size"]
        self.text = TextTower(self.model, end_id=49407).eval()
        causal = self.text.causal
        self.specs = (
            TextSpec(config["text_cfg"]["context_length"], 49408, causal, pad_id=0),
            ImageSpec(size, size, MEAN, STD, "bicubic", "shortest", 0),
        )
        towers = self.text, ImageTower(self.model, MEAN, STD).eval()
        cuda_weights.write(folder, config, towers, self.specs, float16=float16)

    @property
    def manifest(self) -> Manifest:
        return Manifest(
            model="small",
            weights="seed 3",
            weights_sha256="0" * 64,
            embedding_dim=16,
            text=self.specs[0],
            image=self.specs[1],
            files={
                **{name: FileEntry("0" * 64, 1) for name in FILES},
                **{name: describe_file(self.folder / name) for name in CUDA_FILES},
            },
            made_with={"torch": "1.2.3"},
            identity=hashlib.sha256(str(self.folder).encode()).hexdigest(),
        )

    def load(self, kind: Literal["text", "image"], precision: Any = "fp32") -> TorchTower:
        return load(self.folder, self.manifest, kind, device="cpu", precision=precision)

    def expected(self, kind: Literal["text", "image"], batch: NDArray[Any]) -> NDArray[np.float32]:
        """As open_clip itself encodes it, normalised."""
        with torch.inference_mode():
            if kind == "text":
                full = np.zeros((len(batch), self.specs[0].context_length), np.int64)
                full[:, : batch.shape[1]] = batch
                vectors = self.model.encode_text(torch.from_numpy(full), normalize=True)
            else:
                mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
                planes = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
                vectors = self.model.encode_image((planes - mean) / std, normalize=True)
        return np.asarray(vectors.numpy())

    def batch(self, kind: Literal["text", "image"], rows: int) -> NDArray[Any]:
        random = np.random.default_rng(rows)
        if kind == "image":
            height, width = self.specs[1].height, self.specs[1].width
            return random.integers(0, 256, (rows, height, width, 3), np.uint8)
        length = 8 if self.specs[0].causal else self.specs[0].context_length
        tokens = np.zeros((rows, length), np.int64)
        for row, end in zip(tokens, random.integers(1, length, rows), strict=True):
            row[0], row[end] = 49406, 49407
            row[1:end] = random.integers(1, 49406, end - 1)
        return tokens


@pytest.fixture
def small(tmp_path: Path) -> Model:
    return Model(tmp_path, SMALL)


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"custom_text": True},
        {"custom_text": True, "text_cfg": {**SMALL["text_cfg"], "proj_bias": True}},
        {"text_cfg": {**SMALL["text_cfg"], "pool_type": "eos", "eos_id": 49407}},
        {"text_cfg": {**SMALL["text_cfg"], "no_causal_mask": True}},
        {"vision_cfg": RESNET},
        {"vision_cfg": ROTARY},
    ],
    ids=["clip", "quick_gelu", "custom", "bias", "eos", "bidirectional", "resnet", "timm"],
)
def test_every_kind_of_model_has_open_clip_s_vectors(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = Model(tmp_path, {**SMALL, **changes})
    for kind in KINDS:
        batch = model.batch(kind, 5)
        vectors = model.load(kind).encode(batch)
        assert vectors.dtype == np.float32
        assert np.abs(normalised(vectors) - model.expected(kind, batch)).max() < 2e-5
        narrow = normalised(model.load(kind, "bf16").encode(batch[:1]))
        assert float((narrow * model.expected(kind, batch[:1])).sum()) > 0.99


@pytest.mark.parametrize(("precision", "cosine"), [("bf16", 0.9995), ("fp16", 0.99999)])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_vectors_point_where_fp32_ones_do(
    small: Model, kind: Any, precision: str, cosine: float
) -> None:
    batch = small.batch(kind, 20)
    vectors = small.load(kind, precision).encode(batch)
    assert vectors.dtype == np.float32
    assert (normalised(vectors) * small.expected(kind, batch)).sum(1).min() > cosine
    assert np.abs(normalised(vectors) - small.expected(kind, batch)).max() > 1e-7


def test_weights_stored_as_float16_take_half_the_disk(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    (tmp_path / "narrow").mkdir()
    wide, narrow = Model(tmp_path / "wide", SMALL), Model(tmp_path / "narrow", SMALL, float16=True)
    for kind in KINDS:
        name = CUDA_TOWER_FILES[kind][1]
        assert narrow.manifest.files[name].bytes < 0.55 * wide.manifest.files[name].bytes
        batch = wide.batch(kind, 5)
        actual = normalised(narrow.load(kind).encode(batch))
        assert np.abs(actual - wide.expected(kind, batch)).max() < 1e-3


def test_only_the_tower_s_own_weights_are_needed(small: Model) -> None:
    manifest = small.manifest
    (small.folder / "image.safetensors").unlink()
    load(small.folder, manifest, "text", device="cpu")
    with pytest.raises(BundleError, match=r"image\.safetensors: cannot be read"):
        load(small.folder, manifest, "image", device="cpu")


def test_damaged_weights_are_refused(small: Model) -> None:
    manifest = small.manifest
    data = bytearray((small.folder / "text.safetensors").read_bytes())
    data[-1] ^= 1
    (small.folder / "text.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load(small.folder, manifest, "text", device="cpu")


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ln_last.bias"] = tensors.pop("ln_final.bias")


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ln_final.bias"] = torch.zeros(5)


def change(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ln_final.bias"] += 0.1


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (rename, "other names of weights"),
        (reshape, "ln_final.bias has another shape"),
        (change, "other embeddings than when it was exported"),
    ],
)
def test_weights_that_open_clip_makes_something_else_of_are_refused_with_versions(
    small: Model, damage: Callable[[dict[str, torch.Tensor]], None], expected: str
) -> None:
    tensors = load_file(small.folder / "text.safetensors")
    damage(tensors)
    save_file(tensors, small.folder / "text.safetensors")
    with pytest.raises(BundleError, match=expected) as error:
        small.load("text", "bf16")
    assert f"torch {torch.__version__.partition('+')[0]}" in str(error.value)
    assert "torch 1.2.3" in str(error.value)


def edit(model: Model, change: Callable[[dict[str, Any]], Any]) -> None:
    path = model.folder / "open_clip.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def test_another_activation_than_at_the_export_is_noticed(small: Model) -> None:
    edit(small, lambda content: content["config"].update(quick_gelu=True))
    for kind in KINDS:
        with pytest.raises(BundleError, match="other embeddings"):
            small.load(kind, "bf16")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content.pop("config"), "is no configuration"),
        (lambda content: content["config"].update(text_cfg=5), "is no configuration"),
        (lambda content: content["probes"].update(text=[1, 2]), "does not fit the manifest"),
        (lambda content: content["config"].update(unknown=1), "cannot build"),
        (
            lambda content: content["config"]["text_cfg"].update(hf_model_name="some/where"),
            "does not fit the manifest",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(
    small: Model, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    edit(small, change)
    with pytest.raises(BundleError, match=expected):
        small.load("text")


def test_a_model_whose_numbers_are_too_great_for_fp16_says_so(tmp_path: Path) -> None:
    model = Model(tmp_path, SMALL)
    with torch.no_grad():
        model.text.ln_final.bias.fill_(3e5)
    cuda_weights.write(tmp_path, SMALL, (model.text, ImageTower(model.model, MEAN, STD).eval()),
                       model.specs, float16=False)  # fmt: skip
    assert np.isfinite(model.load("text").encode(model.batch("text", 2))).all()
    with pytest.raises(BundleError, match="set precision to fp32"):
        model.load("text", "fp16")


class Memory:
    """A tower of a device that holds `most` units at once; embeds a row as its first value."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        self.shapes.append(tuple(batch.shape))
        if batch.shape[0] * (batch.shape[1] if batch.dim() == 2 else 1) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return batch.reshape(len(batch), -1)[:, :1].to(torch.float32)


def tower_of(memory: Callable[[torch.Tensor], torch.Tensor], units: int, **more: Any) -> TorchTower:
    return TorchTower(memory, 1, CPU, piece_units=units, **{"lost": fail, **more})


def fail() -> None:
    raise AssertionError("the device is not lost")


def pictures(rows: int) -> NDArray[np.uint8]:
    return np.repeat(np.arange(rows, dtype=np.uint8), 12).reshape(rows, 2, 2, 3)


def test_a_batch_that_fits_goes_through_in_pieces_and_keeps_its_order() -> None:
    memory = Memory(1000)
    vectors = tower_of(memory, 16).encode(pictures(40))
    assert vectors[:, 0].tolist() == list(range(40))
    assert [shape[0] for shape in memory.shapes] == [16, 16, 8]


def test_out_of_memory_halves_the_pieces_and_is_remembered() -> None:
    memory = Memory(5)
    tower = tower_of(memory, 16)
    assert tower.encode(pictures(40))[:, 0].tolist() == list(range(40))
    assert [shape[0] for shape in memory.shapes] == [16, 8, *[4] * 10]
    memory.shapes.clear()
    assert tower.encode(pictures(10))[:, 0].tolist() == list(range(10))
    assert [shape[0] for shape in memory.shapes] == [4, 4, 2]


def test_texts_are_measured_in_tokens() -> None:
    memory = Memory(100)
    tower = tower_of(memory, 256)
    tokens = np.repeat(np.arange(30), 8).reshape(30, 8)
    assert tower.encode(tokens)[:, 0].tolist() == list(range(30))
    assert memory.shapes == [(30, 8), (15, 8), *[(7, 8)] * 4, (2, 8)]
    memory.shapes.clear()
    tower.encode(np.zeros((4, 24), np.int64))
    assert memory.shapes == [(2, 24), (2, 24)]
    memory.shapes.clear()
    tower.encode(np.zeros((2, 77), np.int64))
    assert memory.shapes == [(1, 77), (1, 77)]


def test_a_row_that_does_not_fit_alone_is_an_error_and_smaller_ones_go_on() -> None:
    tower = tower_of(Memory(20), 64)
    with pytest.raises(DeviceError, match="does not hold one row"):
        tower.encode(np.zeros((3, 24), np.int64))
    assert len(tower.encode(np.zeros((5, 8), np.int64))) == 5


def test_an_empty_batch_gives_no_rows() -> None:
    assert tower_of(Memory(1), 1).encode(np.empty((0, 8), np.int64)).shape == (0, 1)


def test_batches_need_not_be_contiguous() -> None:
    assert tower_of(Memory(9), 9).encode(pictures(8)[::2])[:, 0].tolist() == [0, 2, 4, 6]


def broken(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be")


def test_a_device_that_has_failed_is_given_up_before_the_query_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "works", lambda _: False)
    events: list[str] = []
    tower = tower_of(broken, 4, lost=lambda: events.append("lost"))
    with pytest.raises(DeviceError, match=r"has failed \(CUDA error: device-side assert trig.*new"):
        tower.encode(pictures(1))
    assert events == ["lost"]


def test_an_error_of_a_device_that_still_works_is_the_query_s_alone() -> None:
    with pytest.raises(RuntimeError, match="device-side"):
        tower_of(broken, 4).encode(pictures(1))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit into the free memory"),
        (
            RuntimeError("CUDA error: no kernel image is available"),
            "cannot be used: CUDA error: no",
        ),
    ],
)
def test_a_device_that_takes_no_weights_says_why(
    small: Model, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cuda_weights, "_fill", refuse)
    with pytest.raises(DeviceError, match=expected):
        small.load("image")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of them; nothing can be computed."""
    memory = SimpleNamespace(free=10_000, total=20_000, ours=1_000, share=0.0)

    def limit(share: float, _: torch.device) -> None:
        memory.share = share

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory.free, memory.total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: memory.ours)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    return memory


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("setting", "expected"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)]
)
def test_one_of_several_gpus_is_chosen_by_the_setting(setting: str, expected: int) -> None:
    assert engine.find_device(setting) == torch.device("cuda", expected)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"cuda:2: no such GPU.*cuda:0 to cuda:1"):
        engine.find_device("cuda:2")


def test_no_gpu_is_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"finds no GPU; nvidia-smi"):
        engine.find_device("cuda")


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"),
                                 ((7, 0), "fp16"), ((6, 1), "fp32")],
)  # fmt: skip
def test_auto_is_the_narrow_type_that_a_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda", 1)
    assert engine.resolve_precision("auto", gpu) == expected
    assert engine.resolve_precision("fp32", gpu) == "fp32"
    assert engine.resolve_precision("auto", CPU) == "fp32"


def test_this_process_leaves_others_a_share_of_the_free_memory(two_gpus: SimpleNamespace) -> None:
    engine.limit_memory(torch.device("cuda", 0))
    assert two_gpus.share == pytest.approx((1_000 + 0.8 * 10_000) / 20_000)


def test_the_service_s_confinement_lets_it_work(small: Model) -> None:
    """torch's imports look for compilers and write temporary files; the service may do neither."""
    run = small.folder / "run"
    run.mkdir()
    (small.folder / "manifest.json").write_bytes(small.manifest.to_json())
    code = (
        "import pathlib, numpy\n"
        "from clickhouse_clip.udf.bundle import load_manifest\n"
        "from clickhouse_clip.udf.confine import confine\n"
        "from clickhouse_clip.udf.engines import choice\n"
        f"bundle = pathlib.Path({str(small.folder)!r})\n"
        "confine([bundle / 'run'])\n"
        "engine = choice.import_engine(bundle / 'run')\n"
        "for kind, shape in (('text', (3, 8)), ('image', (3, 32, 32, 3))):\n"
        "    tower = engine.load(bundle, load_manifest(bundle), kind, device='cpu')\n"
        "    batch = numpy.full(shape, *((49407, 'i8') if kind == 'text' else (9, 'u1')))\n"
        "    assert tower.encode(batch).shape == (3, 16)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(run.iterdir()) == []


def test_the_encoder_serves_from_it_and_leaves_when_the_gpu_is_lost(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way but the device itself: setting, choice, scheduler, report, loss."""
    from clickhouse_clip.udf.bundle import TOKENIZER
    from clickhouse_clip.udf.catalog import BY_NAME
    from clickhouse_clip.udf.encoder import Encoder
    from clickhouse_clip.udf.export import _write_tokenizer
    from clickhouse_clip.udf.settings import Settings

    _write_tokenizer(small.folder / TOKENIZER)
    manifest = small.manifest
    tokenizer = {TOKENIZER: describe_file(small.folder / TOKENIZER)}
    for name in FILES:
        (small.folder / name).touch()
    manifest = replace(manifest, files={**manifest.files, **tokenizer})
    folder = small.folder
    settings = Settings(folder, folder / "run", folder / "log", device="cuda", precision="bf16")
    settings.runtime_dir.mkdir()
    monkeypatch.setattr(engine, "find_device", lambda _: CPU)
    lost: list[str] = []
    encoder = Encoder(settings, manifest, device_lost=lambda: lost.append("lost"))
    encoder.load("text")
    report = encoder.report()
    assert (report["device"], report["unused_gpu"], report["precision"]) == ("cpu", "", "bf16")
    vectors, _ = encoder.start(BY_NAME["encode_text"], [b"a dog", b"a cat"] * 50, 100).result()
    tokens = np.array(
        [[49406, 320, 1929, 49407, 0, 0, 0, 0], [49406, 320, 2368, 49407, 0, 0, 0, 0]]
    )
    expected = np.tile(small.expected("text", tokens), (50, 1))
    assert (vectors * expected).sum(1).min() > 0.999
    assert lost == []

    monkeypatch.setattr(engine, "works", lambda _: False)
    monkeypatch.setattr(TorchTower, "_encode", lambda *_: broken(torch.empty(0)))
    with pytest.raises(DeviceError, match="the next query starts a new encoder service"):
        encoder.start(BY_NAME["encode_text"], [b"a bird"], 1).result()
    assert lost == ["lost"]
