"""The bundle's tokenizer, preprocessing and towers against open_clip's own.

Needs the package's `export` extra. Where that is missing on purpose, CLIP_SKIP_PARITY=1 says so;
without it these tests fail, because tests that skip by themselves prove nothing.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

#: The guide's model, at full size; its weights are random, from this seed.
MODEL, SEED = "ViT-B-32", 0

_SKIPPED = os.environ.get("CLIP_SKIP_PARITY") == "1"

if _SKIPPED:
    collect_ignore_glob = ["test_*.py"]
elif importlib.util.find_spec("torch") is None or importlib.util.find_spec("open_clip") is None:
    raise pytest.UsageError(
        "tests/parity compares with open_clip: pip install -e '.[export]',"
        " or set CLIP_SKIP_PARITY=1 to leave these tests out"
    )


@pytest.fixture(scope="session")
def reference() -> Any:
    """open_clip's model, in evaluation mode."""
    import open_clip
    import torch

    torch.manual_seed(SEED)
    return open_clip.create_model(MODEL).eval()


@pytest.fixture(scope="session")
def bundle(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `clip-bundle export --checkpoint --cuda` makes of it."""
    from safetensors.torch import save_file

    from clickhouse_clip.udf.bundle_cli import main

    folder = tmp_path_factory.mktemp("export")
    checkpoint = folder / "random.safetensors"
    save_file({name: tensor.clone() for name, tensor in reference.state_dict().items()}, checkpoint)
    output = folder / "bundle"
    command = ["export", "--model", MODEL, "--checkpoint", str(checkpoint)]
    assert main([*command, "--cuda", "--output", str(output)]) == 0
    return output
