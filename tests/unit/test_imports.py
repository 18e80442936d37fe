"""Imports point one way, and what is started often or runs as root loads little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("udf", "installer", "config", "sql", "demo")

#: What each module of the package may import of the package; see "How it works" in the README.
ALLOWED = {
    "udf.errors": set(),
    "udf.native": {"udf.errors"},
    "udf.frames": {"udf.errors"},
    "udf.launch": {"udf", "udf.errors", "udf.frames", "udf.start"},
    "udf.start": {"udf.confine", "udf.errors"},
    "udf.confine": {"udf.errors"},
    "udf.worker": {"udf.errors", "udf.frames", "udf.launch", "udf.native"},
    "udf.encode_text": {"udf.worker"},
    "udf.encode_image": {"udf.worker"},
    "udf.catalog": {"udf.native"},
    "udf.settings": {"udf.errors"},
    "udf.bundle": {"udf.errors"},
    "udf.cpus": set(),
    "udf.sources": set(),
    "udf.tasks": set(),
    "udf.watchdog": {"udf", "udf.errors", "udf.frames", "udf.tasks"},
    "udf.greeting": {"udf", "udf.errors", "udf.frames", "udf.launch"},
    "udf.service_log": {"udf.errors", "udf.settings"},
    "udf.text": {"udf.bundle", "udf.errors"},
    "udf.resampling": set(),
    "udf.picture_limits": {"udf.errors"},
    "udf.image": {"udf.bundle", "udf.errors", "udf.picture_limits", "udf.resampling"},
    "udf.picture_files": {"udf.errors"},
    "udf.engines.openvino": {"udf.bundle", "udf.cpus", "udf.errors", "udf.settings"},
    "udf.engines.torch": {"udf.bundle", "udf.cuda_weights", "udf.errors", "udf.settings"},
    "udf.engines.choice": {
        *("udf.engines", "udf.engines.openvino", "udf.engines.torch"),
        *("udf.bundle", "udf.errors", "udf.settings"),
    },
    "udf.cuda_weights": {"udf.bundle", "udf.errors", "udf.open_clip_models", "udf.towers"},
    "udf.jobs": set(),
    "udf.queues": {"udf.jobs"},
    "udf.scheduler": {"udf.engines", "udf.jobs", "udf.queues", "udf.tasks"},
    "udf.windows": {"udf.errors", "udf.jobs"},
    "udf.attention": set(),
    "udf.towers": set(),
    "udf.open_clip_models": {"udf.bundle", "udf.errors"},
    "udf.control": {"udf", "udf.errors", "udf.launch", "udf.settings"},
    "udf.engines": set(),
}

HEAVY = {"numpy", "PIL", "openvino", "torch", "open_clip", "ftfy", "regex"}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "train" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in names if name.removeprefix("clickhouse_clip.") in modules()}
            found |= known or {node.module}
    return found


def ours(path: Path) -> set[str]:
    prefix = "clickhouse_clip."
    return {name.removeprefix(prefix) for name in imports_of(path) if name.startswith(prefix)}


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    assert ours(modules()[module]) <= ALLOWED[module]


def test_udf_never_imports_what_is_built_on_it() -> None:
    for module, path in modules().items():
        if module.startswith("udf"):
            assert not any(name.startswith(("installer", "demo", "sql")) for name in ours(path))


def test_the_installer_imports_of_udf_only_what_describes_it() -> None:
    allowed = {"udf", "udf.catalog", "udf.bundle", "udf.settings", "udf.errors", "udf.launch"}
    for module, path in modules().items():
        if module.startswith("installer"):
            assert {name for name in ours(path) if name.startswith("udf")} <= allowed


def test_only_the_export_and_the_gpu_s_engine_import_torch() -> None:
    for module, path in modules().items():
        if {"torch", "open_clip"} & {name.partition(".")[0] for name in imports_of(path)}:
            engine = ("udf.engines.torch", "udf.cuda_weights", "udf.open_clip_models", "udf.towers")
            assert module in ("udf.export", "udf.attention", *engine)


def test_only_the_choice_of_an_engine_imports_the_gpu_s_and_only_when_it_is_asked_to() -> None:
    importers = {name for name, path in modules().items() if "udf.engines.torch" in ours(path)}
    assert importers == {"udf.engines.choice", "udf.export"}
    assert not loaded_by("clickhouse_clip.udf.engines.choice") & {"torch", "open_clip", "openvino"}


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in output.split()}


def test_workers_load_nothing_but_the_standard_library() -> None:
    for module in ("encode_text", "encode_image"):
        loaded = loaded_by(f"clickhouse_clip.udf.{module}")
        third_party = {name for name in loaded if not name.startswith(("_", "clickhouse_clip"))}
        assert not third_party - sys.stdlib_module_names
        # What makes a worker's start slow.
        assert not loaded & {"subprocess", "asyncio", "logging"}


@pytest.mark.parametrize("module", ["installer.cli", "udf.bundle_cli", "udf.control"])
def test_commands_load_no_model_library(module: str) -> None:
    assert not loaded_by(f"clickhouse_clip.{module}") & HEAVY
