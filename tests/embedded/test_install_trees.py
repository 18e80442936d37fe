"""On every kind of server: its own functions stay callable through install, upgrade and uninstall.

Each step is opened by the real engine, in a process of its own: an engine takes one configuration
per process. That the whole tree is as before, without an engine that writes its own files into it,
is shown in tests/unit/installer/test_trees.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clickhouse_clip.installer.cli import main
from clickhouse_clip.installer.preflight import copy_as_xml
from tests.embedded.conftest import PYTHON, assert_vectors
from tests.embedded.engine import Engine, QueryError
from tests.server_trees import TREES, Tree, state
from tests.toy import text_vector


def main_file(etc: Path, scratch: Path) -> Path:
    """The main file; of a server with YAML that of a copy, as the embedded engine knows none."""
    main = next(path for path in (etc / "config.xml", etc / "config.yaml") if path.exists())
    if not [*etc.rglob("*.yaml"), *etc.rglob("*.yml")]:
        return main
    shutil.rmtree(scratch, ignore_errors=True)
    return copy_as_xml(main, scratch)


def foreign_answers(engine: Engine) -> tuple[str, ...]:
    """The server's own functions that answer."""
    found = []
    for name in ("stock", "more"):
        try:
            answer = engine.value(f"SELECT {name}('x')")
        except QueryError as error:
            if "Code: 46." not in str(error):  # unknown function, in words that versions change
                raise
        else:
            assert answer == "answer x"
            found.append(name)
    return tuple(found)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_install_upgrade_uninstall(tmp_path: Path, bundle: Path, tree: Tree) -> None:
    etc, data = tmp_path / "etc", tmp_path / "var" / "data"
    tree.write(etc, data)
    shared = [etc, *(data / name for name in ("user_scripts", "user_files", "clickhouse-clip"))]
    before = state(*shared, data.parent / "scripts")
    options = ["--config-dir", str(etc)]

    def look(function: str | None) -> None:
        engine = Engine(PYTHON, data, main_file(etc, tmp_path / "xml"))
        try:
            assert foreign_answers(engine) == tree.functions
            if function is not None:
                vector = engine.value(f"SELECT {function}('a dog')")
                assert_vectors(vector, text_vector(b"a dog"))
            else:
                with pytest.raises(QueryError, match="encode_text"):
                    engine.query("SELECT encode_text('a dog')")
        finally:
            engine.close()

    look(None)
    assert main(["--bundle", str(bundle), "--precision", "fp32", *options]) == 0
    look("encode_text")
    assert main(["--prefix", "clip_", "--pool-size", "4", "--warmup", *options]) == 0
    look("clip_encode_text")
    assert main(["--uninstall", *options]) == 0
    assert state(*shared, data.parent / "scripts") == before
    look(None)
