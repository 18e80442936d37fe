"""What the code never does, whoever asks: load a pickle, run what it is given, call out.

And that docs/security.md names tests that there are.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse_clip.config import render
from clickhouse_clip.udf.bundle import FILES, MANIFEST, TOWER_FILES, load_manifest, verify
from clickhouse_clip.udf.engines import openvino
from clickhouse_clip.udf.errors import BundleError
from clickhouse_clip.udf.text import Tokenizer
from tests import toy

ROOT = Path(__file__).parents[2]

#: Modules that make objects, programs or connections out of bytes.
UNSAFE = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("ftplib", "http", "requests", "smtplib", "telnetlib", "xmlrpc", "webbrowser"),
    *("urllib.request", "urllib3"),
}

#: Functions that run what they are given.
RUNNING = {"eval", "exec", "compile", "system", "popen", "__import__"}


def sources() -> dict[str, ast.Module]:
    paths = [path for part in ("udf", "installer", "config", "sql") for path in ROOT.rglob(part)]
    files = [file for path in paths if path.parent == ROOT for file in path.rglob("*.py")]
    assert len(files) > 60
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, dotted name and call, of every call."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield name, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    found = [argument.value for argument in call.keywords if argument.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_nothing_that_unpickles_or_downloads_is_imported() -> None:
    for file, tree in sources().items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {*names, *(name.partition(".")[0] for name in names)} & UNSAFE, file


def test_nothing_runs_what_it_is_given() -> None:
    for file, name, call in calls():
        # model.eval() is torch's, re.compile() makes a pattern.
        if name in RUNNING or name.startswith(("os.system", "os.popen", "os.exec", "builtins.")):
            pytest.fail(f"{file}: {name}")
        assert keyword(call, "shell") is not True, file


def test_checkpoints_and_arrays_are_loaded_without_pickle() -> None:
    loads = [(file, name, call) for file, name, call in calls() if name.endswith(".load")]
    for file, name, call in loads:
        # In engines/choice.py, `torch` is our own module.
        if name == "torch.load" and file != "udf/engines/choice.py":
            assert keyword(call, "weights_only") is True, file
    for file, name, call in loads:
        # numpy's default is False, and stays.
        assert not (name in ("np.load", "numpy.load") and keyword(call, "allow_pickle")), file
        assert name != "yaml.load", file
    for file, name, call in calls():
        assert not name.startswith("torch.jit."), file
        if name == "open_clip.create_model" and len(call.args) > 1:  # with weights
            assert keyword(call, "weights_only") is True, file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def load_everything(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    Tokenizer.load(bundle, manifest)
    for tower in ("text", "image"):
        openvino.load(bundle, manifest, tower, precision="fp32", threads=1)


def test_a_whole_bundle_loads(bundle: Path) -> None:
    load_everything(bundle)
    assert set(FILES) | {MANIFEST} == {file.name for file in bundle.iterdir()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["a bit", "a byte more", "another file's", "a link"])
def test_a_file_that_is_not_the_manifests_is_not_loaded(bundle: Path, name: str, way: str) -> None:
    file = bundle / name
    data = bytearray(file.read_bytes())
    if way == "a bit":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif way == "a byte more":
        file.write_bytes(data + b"\0")
    elif way == "another file's":
        file.write_bytes((bundle / MANIFEST).read_bytes())
    else:
        file.unlink()
        file.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=name):
        load_everything(bundle)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_model_that_points_at_other_weights_is_not_loaded(bundle: Path, tower: str) -> None:
    """OpenVINO's XML says where in the weights a constant lies: it is hashed as they are."""
    file = bundle / TOWER_FILES[tower][0]
    text = file.read_text()
    assert 'offset="0"' in text
    file.write_text(text.replace('offset="0"', 'offset="8"', 1))
    with pytest.raises(BundleError, match=f"{tower}.xml: its SHA-256"):
        load_everything(bundle)


def test_a_manifest_cannot_point_outside_of_its_folder(bundle: Path) -> None:
    values = json.loads((bundle / MANIFEST).read_bytes())
    for name in ("../text.bin", "/etc/passwd", "extra.so"):
        files = {**values["files"], name: values["files"]["text.bin"]}
        (bundle / MANIFEST).write_text(json.dumps({**values, "files": files}))
        with pytest.raises(BundleError, match="files: must be exactly"):
            load_everything(bundle)


def test_a_manifest_that_was_changed_has_another_identity(bundle: Path) -> None:
    """It is not signed: who may write the bundle decides what the model is, and can be seen to."""
    before = load_manifest(bundle).identity
    values = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps({**values, "model": "another"}))
    verify(bundle, load_manifest(bundle))
    assert load_manifest(bundle).identity != before


MARKUP = "</x><command>touch /tmp/x</command>&amp;\"'"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("drop_in.xml.j2", {"functions_file": MARKUP}),
        ("warmup.xml.j2", {"function": MARKUP}),
        ("server.xml.j2", {"data_dir": MARKUP, "user_files": MARKUP, "user_scripts": MARKUP}),
    ],
)
def test_no_value_becomes_markup(template: str, values: dict[str, str]) -> None:
    assert "<command>" not in render(template, **values)


def test_each_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    tests = {file: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+)(?:\.py)?`", text))
    assert len(named) > 30
    for name in named:
        is_file = name in {file.stem for file in tests}
        assert is_file or any(f"def {name}(" in code for code in tests.values()), name
