"""Merging, as ClickHouse's documentation and its ConfigProcessor describe it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.installer.collisions import _alternatives
from clickhouse_clip.installer.config_tree import load, read, to_xml
from clickhouse_clip.udf.errors import InstallError


def merged(folder: Path, *contents: str) -> str:
    """The text of what `contents` merge to; those that begin with no `<` are YAML."""
    names = [("config", folder), *((f"{n}", folder / "config.d") for n in range(9))]
    for content, (name, place) in zip(contents, names, strict=False):
        place.mkdir(exist_ok=True)
        suffix = ".xml" if content.startswith("<") or not content else ".yaml"
        text = f"<clickhouse>{content}</clickhouse>" if suffix == ".xml" else content
        (place / f"{name}{suffix}").write_text(text)
    main = next(path for path in folder.glob("config.[xy]*ml"))
    tree, _ = load(main)
    return to_xml(tree).removeprefix("<clickhouse>").removesuffix("</clickhouse>")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (["<a>1</a>", "<a>2</a>"], "<a>2</a>"),
        (["<a>1</a>", "<b>2</b>"], "<a>1</a><b>2</b>"),
        (["<a><x>1</x></a>", "<a><y>2</y></a>"], "<a><x>1</x><y>2</y></a>"),
        (["<a><x>1</x></a>", "<a replace='1'><y>2</y></a>"], "<a><y>2</y></a>"),
        (["<a><x>1</x></a>", "<a remove='remove'/>"], ""),
        (["<a>1</a>", "<a k='v'>2</a>"], '<a>1</a><a k="v">2</a>'),
        (["<a k='v'>1</a>", "<a k='v'>2</a>"], '<a k="v">2</a>'),
        (["<a incl='i'>1</a>", "<a>2</a>"], '<a incl="i">2</a>'),
        (["<a>1</a><a>2</a>", "<a>3</a>"], "<a>1</a><a>3</a>"),
        (["<a>1</a>", "<a>2</a><a>3</a>"], "<a>2</a><a>3</a>"),
        (["<b/>", "<a><x remove='1'/><y>2</y></a>"], "<b></b><a><y>2</y></a>"),
        (["<b/>", "<a remove='1'/>"], "<b></b>"),
        (["<a>1</a>", "<a/>"], "<a></a>"),
        (["<a>1</a>", "a: 2"], "<a>2</a>"),
        (["a: 1", "<a>2</a>"], "<a>2</a>"),
        (["a: [1, 2]"], "<a>1</a><a>2</a>"),
        (["a:\n- x: 1\n- y: 2"], "<a><x>1</x></a><a><y>2</y></a>"),
        (["a:\n  '@k': v\n  '#text': 1"], '<a k="v">1</a>'),
        (["<a>1</a>", "a:\n  '@remove': 1"], ""),
        (["a: yes\nb: 0x10\nc: ~\nd: 1e3"], "<a>yes</a><b>0x10</b><c></c><d>1e3</d>"),
        (["a: 1\na: 2"], "<a>1</a><a>2</a>"),
        (["clickhouse:\n  a: 1"], "<a>1</a>"),
        (["- a: 1\n- b: 2"], "<a>1</a><b>2</b>"),
        (["a: '<&>'"], "<a>&lt;&amp;&gt;</a>"),
    ],
)
def test_merging(tmp_path: Path, contents: list[str], expected: str) -> None:
    assert merged(tmp_path, *contents) == expected


def test_empty_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert to_xml(read(tmp_path / "a.yaml")) == "<clickhouse></clickhouse>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<a>", "no valid XML"),
        ("a.yaml", "a: [", "no valid YAML"),
        ("a.yaml", b"\xff\xfe\xff", "no valid YAML"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InstallError, match=message):
        read(tmp_path / name)
    with pytest.raises(InstallError, match="cannot be read"):
        read(tmp_path / "missing.xml")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/a/*.xml", ["/a/*.xml"]),
        ("/a/{b,c}.xml", ["/a/b.xml", "/a/c.xml"]),
        ("/{a,b}/{c,d}", ["/a/c", "/a/d", "/b/c", "/b/d"]),
        ("/a{b", ["/a{b"]),
    ],
)
def test_alternatives_in_patterns(pattern: str, expected: list[str]) -> None:
    assert list(_alternatives(pattern)) == expected
