"""`clip-bundle`: make a model bundle, or check one."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from clickhouse_clip.udf.bundle import Manifest, load_manifest, verify
from clickhouse_clip.udf.errors import ClipError, ExportError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if it worked, 1 with a message on stderr if not."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "verify":
            _verify(arguments.directory)
        elif arguments.command == "quantize":
            _quantize(arguments.directory, arguments.output)
        else:
            _export(arguments)
    except ClipError as error:
        print(f"clip-bundle: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("clip-bundle: interrupted, no bundle was made", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clip-bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export",
        help="export an open_clip model (needs the extra: clickhouse-clip[export])",
        description="Export an open_clip model as a bundle, a folder that serves without torch.",
    )
    export.add_argument(
        "--model",
        metavar="NAME",
        help="open_clip's name, as ViT-B-32; by default that of --model-config's file",
    )
    weights = export.add_mutually_exclusive_group(required=True)
    weights.add_argument("--pretrained", metavar="TAG", help="open_clip's weights, as openai")
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="weights from a file: .safetensors, or .pt without code in it",
    )
    export.add_argument(
        "--model-config",
        metavar="FILE",
        type=Path,
        help="architecture from open_clip's JSON; its weights come from --checkpoint",
    )
    export.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="the bundle; must not be there"
    )
    export.add_argument(
        "--fp16",
        action="store_true",
        help="store weights as float16: half the disk, more memory (exact for OpenAI's weights)",
    )
    export.add_argument(
        "--cuda",
        action="store_true",
        help="store what a GPU is served from, too: about twice the disk",
    )
    quantize = commands.add_parser(
        "quantize",
        help="make an int8 bundle of one",
        description="Make an int8 bundle of one: smaller, faster on most processors, and a little "
        "less exact; says how much.",
    )
    quantize.add_argument("directory", metavar="DIR", type=Path)
    quantize.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="the bundle; must not be there"
    )
    check = commands.add_parser("verify", help="check a bundle's manifest and files")
    check.add_argument("directory", metavar="DIR", type=Path)
    return parser


def _verify(directory: Path) -> None:
    manifest = load_manifest(directory)
    verify(directory, manifest)
    print(f"{directory} is whole: {manifest.model} with the weights {manifest.weights},")
    print(f"{manifest.embedding_dim} dimensions, identity {manifest.identity}")
    if manifest.for_cuda:
        print("with what a GPU is served from")


def _export(arguments: argparse.Namespace) -> None:
    if arguments.model_config is not None and arguments.pretrained is not None:
        raise ExportError("--model-config takes its weights from --checkpoint, not --pretrained")
    if arguments.model is None and arguments.model_config is None:
        raise ExportError("name the model: --model NAME, or --model-config FILE")
    step = _progress()
    step("importing torch and open_clip")
    try:
        from clickhouse_clip.udf.export import export
        from clickhouse_clip.udf.open_clip_models import Source
    except ImportError as error:
        raise ExportError(
            f"exporting needs torch and open_clip ({error}): pip install 'clickhouse-clip[export]'"
        ) from error
    source = Source(
        model=arguments.model or arguments.model_config.stem,
        pretrained=arguments.pretrained,
        checkpoint=arguments.checkpoint,
        config_file=arguments.model_config,
    )
    with _sigterm_as_interrupt():
        manifest = export(
            source, arguments.output, step, float16=arguments.fp16, cuda=arguments.cuda
        )
    step(_ready(arguments.output, manifest))


def _quantize(directory: Path, output: Path) -> None:
    # numpy and OpenVINO are not needed to check a bundle.
    from clickhouse_clip.udf import quantize

    step = _progress()
    with _sigterm_as_interrupt():
        manifest, fidelity = quantize.quantize(directory, output, step)
    for tower, each in fidelity.items():
        step(
            f"{tower} tower: cosine to the embeddings before {each.mean:.4f}, at least "
            f"{each.least:.4f}"
        )
    step(_ready(output, manifest))


def _progress() -> Callable[[str], None]:
    started = perf_counter()

    def step(what: str) -> None:
        print(f"[{perf_counter() - started:6.1f} s] {what}", file=sys.stderr, flush=True)

    return step


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """As Ctrl-C: the temporary folder is removed on the way out."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ready(output: Path, manifest: Manifest) -> str:
    size = sum(entry.bytes for entry in manifest.files.values())
    return f"{output} is ready: {size / 1e6:.0f} MB, identity {manifest.identity[:12]}"


if __name__ == "__main__":
    sys.exit(main())
