"""Function names that the server already has from somewhere else. Reads only.

A server that finds two definitions of one name keeps one of them, and which one is chance.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from clickhouse_clip.installer import config_tree
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.plan import Plan
from clickhouse_clip.installer.record import FOLDER
from clickhouse_clip.installer.root import Root
from clickhouse_clip.udf.errors import InstallError


def refuse_taken_names(plan: Plan, root: Root, built_in: Mapping[str, str]) -> None:
    """Raise `InstallError` if somebody else has defined one of the plan's functions.

    `built_in` holds names that a running server knows otherwise, and where each comes from.
    """
    taken = dict(defined_functions(plan.server, root)) | dict(built_in)
    clashes = [f"{name} ({taken[name]})" for name in plan.functions if name in taken]
    if clashes:
        raise InstallError(
            f"the server has functions of these names already: {', '.join(clashes)}. Install ours "
            "under other names with --prefix clip_, or remove those"
        )


def defined_functions(server: Server, root: Root) -> Iterator[tuple[str, str]]:
    """Name and place of every function that other people's definitions give this server."""
    if server.sql_functions is not None:
        for file in sorted(root.at(server.sql_functions).glob("function_*.sql")):
            yield unquote(file.stem.removeprefix("function_")), f"CREATE FUNCTION, {file}"
    for file in _definitions(server, root):
        try:
            tree = config_tree.read(file)
        except InstallError:
            continue  # the server cannot read it either, and says so in its log
        for function in tree.all("function"):
            for name in function.all("name"):
                yield name.text.strip(), str(file)


def _definitions(server: Server, root: Root) -> Iterator[Path]:
    ours = root.at(server.config_dir / FOLDER)
    found = set()
    for pattern in server.patterns:
        # The server falls back to its working directory for a relative one; nobody relies on it.
        whole = str(root.at(server.config_dir / pattern))
        for plain in _alternatives(whole):
            # Path.glob() wants a folder to begin in, and the pattern is absolute.
            found |= {Path(name) for name in glob.glob(plain)}  # noqa: PTH207
    for file in sorted(found):
        if file.is_file() and file.parent != ours and not file.stem.endswith("-preprocessed"):
            yield file


def _alternatives(pattern: str) -> Iterator[str]:
    """What `{a,b}` in a pattern stands for: ClickHouse knows it, Python's glob does not."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    for choice in match[1].split(","):
        yield from _alternatives(pattern[: match.start()] + choice + pattern[match.end() :])
