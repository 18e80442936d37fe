"""A server's configuration as the server itself sees it: all files, merged. Reads, never writes.

Follows ClickHouse's `ConfigProcessor`: which files are merged, in which order, and what `replace`
and `remove` do. Substitutions (`incl`, `from_env`, `from_zk`) are left in the tree as attributes:
their values depend on the server's own surroundings, and who needs one has to say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from clickhouse_clip.udf.errors import InstallError

#: Attributes by which a server takes an element's value from elsewhere.
SUBSTITUTIONS = frozenset(("incl", "from_env", "from_zk", "encrypted_by"))

_XML = (".xml", ".conf", "")
_YAML = (".yaml", ".yml")

#: Both names of a configuration's root, which may be mixed.
_ROOTS = ("clickhouse", "yandex")


@dataclass(slots=True)
class Element:
    """One element; `text` is what stands directly in it, spaces included."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, name: str) -> list[Element]:
        """The children of that name."""
        return [child for child in self.children if child.name == name]

    @property
    def substituted(self) -> bool:
        """Whether the server takes this element's value from elsewhere."""
        return not SUBSTITUTIONS.isdisjoint(self.attributes)

    @property
    def _identity(self) -> tuple[str, frozenset[tuple[str, str]]]:
        """What makes two elements the same one for merging: name and attributes."""
        ignored = SUBSTITUTIONS | {"replace", "remove"}
        kept = ((name, value) for name, value in self.attributes.items() if name not in ignored)
        return self.name, frozenset(kept)


def load(main: Path) -> tuple[Element, tuple[Path, ...]]:
    """The merged configuration of the main file `main`, and the files that it consists of.

    Raises `InstallError` for a file that cannot be read, or that a server would refuse.
    """
    root = read(main)
    if root.name not in _ROOTS:
        raise InstallError(f"{main}: its root is <{root.name}>, and a server wants <clickhouse>")
    files = tuple(merged_files(main))
    for file in files:
        addition = read(file)
        if addition.name not in _ROOTS:
            raise InstallError(
                f"{file}: its root is <{addition.name}>, and a server wants <clickhouse>"
            )
        _merge(root, addition)
    return root, (main, *files)


def merged_files(main: Path) -> Iterator[Path]:
    """What a server merges into `main`, in its order.

    That is by the whole path, so all of `conf.d` comes before `config.d`.
    """
    found = []
    for folder in {main.with_suffix(".d"), main.with_name("conf.d")}:
        if folder.is_dir():
            found += [file for file in folder.iterdir() if _is_merged(file)]
    yield from sorted(found, key=str)


def read(file: Path) -> Element:
    """One file's own tree, of XML or YAML by its ending."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InstallError(
            f"{file}: cannot be read ({error.strerror}); run install-udfs as a user who can"
        ) from error
    if file.suffix.lower() in _YAML:
        return _from_yaml(content, file)
    try:
        return _from_xml(ElementTree.fromstring(content))
    except ElementTree.ParseError as error:
        raise InstallError(f"{file}: is no valid XML ({error})") from error


def to_xml(element: Element) -> str:
    """The text of a tree, as a server reads it."""
    attributes = "".join(
        f" {name}={quoteattr(value)}" for name, value in element.attributes.items()
    )
    inner = escape(element.text) + "".join(map(to_xml, element.children))
    return f"<{element.name}{attributes}>{inner}</{element.name}>"


def _is_merged(file: Path) -> bool:
    suffixes = (".xml", ".conf", *_YAML)
    return not file.name.startswith(".") and file.suffix.lower() in suffixes and file.is_file()


def _merge(config: Element, addition: Element) -> None:
    """Put `addition` over `config`, as `ConfigProcessor::mergeRecursive` does."""
    if config.text.strip():
        config.text = ""
    if addition.text.strip():
        config.text = addition.text
    unmatched = list(config.children)
    for child in addition.children:
        # Of several elements that are alike, versions differ in which one is meant: the newest
        # takes the last.
        match = next((old for old in reversed(unmatched) if old._identity == child._identity), None)
        if match is None:
            if "remove" not in child.attributes:
                config.children.append(_without_instructions(child))
            continue
        unmatched = [old for old in unmatched if old is not match]
        position = next(i for i, old in enumerate(config.children) if old is match)
        if "remove" in child.attributes:
            del config.children[position]
        elif "replace" in child.attributes:
            config.children[position] = _without_instructions(child)
        else:
            _merge(match, child)


def _without_instructions(element: Element) -> Element:
    """A new element's `replace` and `remove` mean nothing; what is to be removed is left out."""
    return Element(
        element.name,
        {name: value for name, value in element.attributes.items() if name != "replace"},
        element.text,
        [
            _without_instructions(child)
            for child in element.children
            if "remove" not in child.attributes
        ],
    )


def _from_xml(element: ElementTree.Element) -> Element:
    text = "".join([element.text or "", *(child.tail or "" for child in element)])
    return Element(element.tag, dict(element.attrib), text, [_from_xml(child) for child in element])


def _from_yaml(content: bytes, file: Path) -> Element:
    import yaml  # most servers have no YAML at all

    try:
        # The syntax tree, not the values: ClickHouse takes every scalar as the text that it is,
        # and keeps repeated keys.
        node = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InstallError(f"{file}: is no valid YAML ({reason})") from error
    if isinstance(node, yaml.MappingNode) and [key.value for key, _ in node.value] == [
        "clickhouse"
    ]:
        node = node.value[0][1]  # the root may be written out
    root = Element("clickhouse")
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        _fill_from_yaml(root, item, [])
    return root


def _fill_from_yaml(element: Element, node: Any, siblings: list[Element]) -> None:
    """Fill `element` from a YAML node; a sequence makes `siblings` of it, one for each item more.

    Keys that begin with `@` are attributes, `#text` is the text beside them.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            target = element
            if number:
                target = Element(element.name)
                siblings.append(target)
            _fill_from_yaml(target, item, siblings)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            is_text = isinstance(value, yaml.ScalarNode)
            if is_text and key.value.startswith("@"):
                element.attributes[key.value[1:]] = value.value
            elif is_text and key.value == "#text":
                element.text = value.value
            else:
                child = Element(key.value)
                element.children.append(child)
                more: list[Element] = []
                _fill_from_yaml(child, value, more)
                element.children += more
    elif isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        element.text = node.value
