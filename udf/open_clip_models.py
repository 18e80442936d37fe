"""open_clip models with their weights, and why one of them cannot become a bundle.

Needs torch and open_clip; only `export` and `engines.torch` import it.
"""

from __future__ import annotations

import difflib
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict

from clickhouse_clip.udf.bundle import describe_file
from clickhouse_clip.udf.errors import ExportError

#: Size of CLIP's own vocabulary: the one that a bundle's tokenizer has.
CLIP_VOCABULARY = 49408


@dataclass(frozen=True, slots=True)
class Source:
    """Which model to export.

    model: open_clip's name of the architecture, or the name to give to `config_file`'s.
    pretrained, checkpoint: open_clip's tag, or a file of weights; exactly one of them.
    config_file: an architecture that open_clip does not know: its JSON, either as in open_clip's
        model_configs/ or as open_clip_config.json (with model_cfg and preprocess_cfg).
    """

    model: str
    pretrained: str | None = None
    checkpoint: Path | None = None
    config_file: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, float32, with the name and the SHA-256 of its weights.

    config: what `build_model` makes the same architecture of.
    """

    model: Any
    weights: str
    weights_sha256: str
    config: dict[str, Any]

    @property
    def quick_gelu(self) -> bool:
        """Whether its activation is QuickGELU."""
        return bool(self.config["quick_gelu"])


def build_model(config: Mapping[str, Any]) -> CLIP | CustomTextCLIP:
    """A model of this architecture (`LoadedModel.config`), in evaluation mode.

    Its weights are random: under `torch.device("meta")` they take neither memory nor time.
    """
    # Or timm would download weights of its own.
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    options = {**config, "vision_cfg": vision}
    make = CustomTextCLIP if options.pop("custom_text") else CLIP
    return make(**options).eval()


def load_model(source: Source) -> LoadedModel:
    """Build the model and load its weights; `ExportError` says why it cannot be exported."""
    config, preprocess = _configuration(source)
    reason = refusal(source.model, config)
    if reason:
        raise ExportError(f"{source.model} cannot be exported: {reason}")
    if source.checkpoint is not None:
        return _with_checkpoint(source, source.checkpoint, config, preprocess)
    return _with_pretrained(source.model, source.pretrained or "", config)


def refusal(name: str, config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration has no bundle, or None if it may have one."""
    text = config["text_cfg"]
    if "multimodal_cfg" in config or text.get("embed_cls"):
        return "it is a CoCa model, whose text tower is not CLIP's"
    if text.get("hf_model_name"):
        return f"its text tower is Hugging Face's {text['hf_model_name']}, not CLIP's"
    if text.get("hf_tokenizer_name"):
        return f"its tokenizer is {text['hf_tokenizer_name']}, not CLIP's"
    if "siglip" in name.lower():
        return "its tokenizer is SigLIP's SentencePiece, not CLIP's"
    if text.get("tokenizer_kwargs"):
        return "its tokenizer has options of its own (tokenizer_kwargs)"
    if text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY:
        return f"its vocabulary has {text['vocab_size']} tokens, CLIP's has {CLIP_VOCABULARY}"
    if text.get("pool_type", "argmax") not in ("argmax", "eos", "first", "last"):
        return f"its text tower pools by {text['pool_type']!r}"
    return None


def _configuration(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    if source.config_file is None:
        config = open_clip.get_model_config(source.model) if ":" not in source.model else None
        if config is None:
            near = difflib.get_close_matches(source.model, open_clip.list_models(), 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ExportError(
                f"{source.model}: no model of open_clip {open_clip.__version__}{hint}"
                " (--model-config FILE exports one that it does not know)"
            )
        return config, {}
    try:
        values = json.loads(source.config_file.read_bytes())
        config, preprocess = values.get("model_cfg", values), values.get("preprocess_cfg", {})
        if not all(isinstance(config[name], dict) for name in ("vision_cfg", "text_cfg")):
            raise ValueError("vision_cfg or text_cfg is no object")
        int(config["embed_dim"])
    except OSError as error:
        raise ExportError(f"{source.config_file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{source.config_file}: is no open_clip model configuration ({error})"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        # open_clip takes an architecture by the name of its file.
        file = Path(folder) / f"{source.model}.json"
        file.write_text(json.dumps(config))
        open_clip.add_model_config(file)
    return config, preprocess


def _with_pretrained(name: str, tag: str, config: dict[str, Any]) -> LoadedModel:
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ExportError(f"{name}: open_clip has no weights {tag!r} for it (it has: {tags})")
    # OpenAI's weights, among others, were trained with QuickGELU, and open_clip only warns when a
    # configuration says GELU. The tag knows, so it decides; the other way round there is no choice.
    quick_gelu = bool(known.get("quick_gelu", False))
    if config.get("quick_gelu", False) and not quick_gelu:
        raise ExportError(
            f"{name}: its activation is QuickGELU, the weights {tag!r} were trained with GELU;"
            f" export {name.removesuffix('-quickgelu')} instead"
        )
    try:
        path = Path(open_clip.download_pretrained(known))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "QuickGELU mismatch")
            model = open_clip.create_model(
                name, tag, force_quick_gelu=quick_gelu, weights_only=True
            )
    except Exception as error:  # Anything that a hub client, a URL or torch raises.
        raise ExportError(f"{name}: cannot load the weights {tag!r}: {error}") from error
    config = _as_built(model, config, quick_gelu)
    return LoadedModel(model.eval(), tag, describe_file(path).sha256, config)


def _with_checkpoint(
    source: Source, path: Path, config: dict[str, Any], preprocess: dict[str, Any]
) -> LoadedModel:
    weights = _read_weights(path)
    try:
        model = open_clip.create_model(source.model, force_preprocess_cfg=preprocess)
    except Exception as error:
        raise ExportError(f"{source.model}: open_clip cannot build it: {error}") from error
    if not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        # A scalar in some checkpoints, one element in others; no embedding depends on it.
        weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ExportError(
            f"{path}: these weights do not fit {source.model}: {' '.join(lines)[:500]}"
        ) from error
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ExportError(f"{path}: {bad[0]} has values that are no finite numbers")
    config = _as_built(model, config, bool(config.get("quick_gelu", False)))
    return LoadedModel(model.eval(), path.name, describe_file(path).sha256, config)


def _as_built(model: Any, config: dict[str, Any], quick_gelu: bool) -> dict[str, Any]:
    """The configuration with what `open_clip.create_model` decides beside it."""
    custom_text = isinstance(model, CustomTextCLIP)
    return {**config, "custom_text": custom_text, "quick_gelu": quick_gelu}


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    weights: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            # weights_only: a checkpoint is data from elsewhere and must not run code.
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pickle, zip and safetensors each have their own.
        first = str(error).partition("\n")[0]
        raise ExportError(
            f"{path}: is no checkpoint that can be loaded safely ({first:.200});"
            " save its state_dict as .safetensors"
        ) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in weights.items()
    ):
        raise ExportError(f"{path}: holds no state_dict")
    if weights and all(name.startswith("module.") for name in weights):
        # What torch's DistributedDataParallel puts before every name.
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return dict(weights)
