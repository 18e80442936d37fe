"""Discovery over real-world configurations, and that nothing of an installation stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.installer.cli import main
from clickhouse_clip.installer.collisions import defined_functions
from clickhouse_clip.installer.discover import Folders, discover
from clickhouse_clip.installer.root import Root
from tests.server_trees import TREES, Tree, state


@pytest.fixture(params=TREES.values(), ids=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    tree: Tree = request.param
    tree.write(tmp_path / "etc", tmp_path / "data")
    return tree


def test_discovery(tree: Tree, tmp_path: Path) -> None:
    etc, data = tmp_path / "etc", tmp_path / "data"
    server = discover(etc, Folders(), Root())
    assert server.data_dir == data
    assert server.user_files == data / "user_files"
    assert server.user_scripts == Path(tree.scripts.format(data=data))
    assert sorted(server.patterns) == sorted(
        pattern.replace("{etc}", str(etc)) for pattern in tree.patterns
    )
    found = [name for name, _ in defined_functions(server, Root())]
    assert sorted(found) == sorted(tree.functions)


@pytest.mark.usefixtures("tree")
def test_install_upgrade_uninstall(tmp_path: Path, bundle: Path) -> None:
    before = state(tmp_path)
    options = ["--config-dir", str(tmp_path / "etc"), "--quiet"]
    assert main(["--dry-run", "--bundle", str(bundle), *options]) == 2
    assert state(tmp_path) == before
    assert main(["--bundle", str(bundle), *options]) == 0
    installed = state(tmp_path)
    assert installed != before
    assert main(["--dry-run", *options]) == 0
    assert main(options) == 0
    assert state(tmp_path) == installed
    assert main(["--prefix", "clip_", "--warmup", *options]) == 0
    assert main(["--uninstall", "--dry-run", *options]) == 2
    assert main(["--uninstall", *options]) == 0
    assert state(tmp_path) == before
    assert main(["--uninstall", *options]) == 0
    assert state(tmp_path) == before


def test_our_own_definitions_are_no_collision(tree: Tree, tmp_path: Path, bundle: Path) -> None:
    options = ["--config-dir", str(tmp_path / "etc"), "--quiet"]
    assert main(["--bundle", str(bundle), *options]) == 0
    server = discover(tmp_path / "etc", Folders(), Root())
    # A drop-in that comes later may repeat or replace what it likes: ours is another element.
    assert str(tmp_path / "etc" / "clickhouse-clip" / "functions.xml") in server.patterns
    found = [name for name, _ in defined_functions(server, Root())]
    assert sorted(found) == sorted(tree.functions)
    assert main(options) == 0
