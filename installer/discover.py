"""Finds out where a ClickHouse server keeps what the installer has to touch.

Reads the server's configuration the way the server merges it, as far as these few settings go, and
writes nothing. What it cannot resolve it refuses, and names the option that says it: a guess would
put files where no server looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clickhouse_clip.installer import config_tree
from clickhouse_clip.installer.config_tree import Element
from clickhouse_clip.installer.root import Root
from clickhouse_clip.udf.errors import InstallError

_PATTERN = "user_defined_executable_functions_config"

#: Where a server keeps its data if nothing says otherwise.
_DATA_DIR = Path("/var/lib/clickhouse")

#: The files that a server takes for its configuration, in the order in which it looks for them.
_MAIN_FILES = ("config.xml", "config.yaml", "config.yml")


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders that somebody named by an option: these need not be found."""

    data_dir: Path | None = None
    user_scripts: Path | None = None
    user_files: Path | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One server, as far as the installer has to know it. Paths are absolute, the running system's.

    patterns: where function definitions are looked for, relative to `config_dir`.
    sql_functions: folder of the functions made by CREATE FUNCTION.
    http_port, https_port: of this machine; None where the configuration has none.
    startup_must_succeed: whether a startup script that fails keeps the server from starting.
    preprocessed: whether the server's own preprocessed configuration was read.
    """

    config_dir: Path
    data_dir: Path
    user_scripts: Path
    user_files: Path
    main_config: Path | None = None
    patterns: tuple[str, ...] = field(default=())
    sql_functions: Path | None = None
    http_port: int | None = None
    https_port: int | None = None
    startup_must_succeed: bool = False
    preprocessed: bool = False


def discover(config_dir: Path, named: Folders, root: Root) -> Server:
    """The server whose main configuration file is in `config_dir`.

    Raises `InstallError` if there is none, if it cannot be read, if it is another server's, or if
    it leaves a folder open that `named` does not say.
    """
    main = find_main(config_dir, root)
    if main is None:
        raise InstallError(
            f"{root.at(config_dir)}: has no config.xml and no config.yaml. Name the server's "
            "configuration folder with --config-dir, or add --standalone to make a minimal server"
        )
    tree, files = config_tree.load(root.at(main))
    data_dir = _data_dir(tree, main, named, root)
    newer = _preprocessed(main, files, data_dir or named.data_dir or _DATA_DIR, root)
    if newer is not None:
        tree = newer
        data_dir = _data_dir(tree, main, named, root)
    if data_dir is None:
        raise _unresolved(main, "path", "--data-dir")
    standard = standalone(config_dir, data_dir)
    throws = [
        element.text.strip()
        for scripts in tree.all("startup_scripts")
        for element in scripts.all("throw_on_error")
    ]
    return Server(
        config_dir,
        data_dir,
        named.user_scripts
        or _folder(tree, main, "user_scripts_path", "--user-scripts-dir", standard.user_scripts),
        named.user_files
        or _folder(tree, main, "user_files_path", "--user-files-dir", standard.user_files),
        main_config=main,
        patterns=tuple(element.text for element in tree.all(_PATTERN) if element.text),
        sql_functions=_optional_folder(tree, "user_defined_path") or data_dir / "user_defined",
        http_port=_port(tree, "http_port"),
        https_port=_port(tree, "https_port"),
        startup_must_succeed=any(value.lower() in ("1", "true", "yes") for value in throws),
        preprocessed=newer is not None,
    )


def standalone(config_dir: Path, data_dir: Path) -> Server:
    """The server that a configuration without any paths makes in these folders."""
    return Server(config_dir, data_dir, data_dir / "user_scripts", data_dir / "user_files")


def find_main(config_dir: Path, root: Root) -> Path | None:
    """The main configuration file in a folder, as the running system names it."""
    for name in _MAIN_FILES:
        if root.at(config_dir / name).is_file():
            return config_dir / name
    return None


def _preprocessed(
    main: Path, files: tuple[Path, ...], data_dir: Path, root: Root
) -> Element | None:
    """What the server itself made of these files, if it did so after the last change to them.

    Its value is that substitutions are resolved in it.
    """
    file = root.at(data_dir / "preprocessed_configs" / main.with_suffix(".xml").name)
    try:
        made = file.stat().st_mtime_ns
        if any(source.stat().st_mtime_ns > made for source in files):
            return None
        content = file.read_text(errors="replace")
    except OSError:
        return None
    # Its first comment names the files that it was made of: those of today, and of this server?
    head, _, _ = content.partition("-->")
    named = {Path(line.strip()) for line in head.splitlines()}
    merged = {path for path in named if path.parent.name in ("config.d", "conf.d")}
    if {*merged, *(named & {main})} != {root.seen(source) for source in files}:
        return None
    return config_tree.read(file)


def _data_dir(tree: Element, main: Path, named: Folders, root: Root) -> Path | None:
    """The data folder; None if neither the configuration nor an option says it."""
    if _unsure(tree, "path"):
        return named.data_dir
    found = _folder(tree, main, "path", "--data-dir", named.data_dir or _DATA_DIR)
    if named.data_dir is None:
        return found
    if root.at(found).resolve() != root.at(named.data_dir).resolve():
        raise InstallError(
            f"{main}: the server's data is in {found}, not in {named.data_dir}; "
            "name that folder with --data-dir"
        )
    return named.data_dir


def _folder(tree: Element, main: Path, name: str, option: str, standard: Path) -> Path:
    if _unsure(tree, name):
        raise _unresolved(main, name, option)
    elements = tree.all(name)
    if len(elements) > 1:
        raise InstallError(
            f"{main}: there is more than one <{name}>, and which of them counts differs between "
            f"versions of ClickHouse; leave one, or name the folder with {option}"
        )
    if not elements:
        return standard
    folder = Path(elements[0].text)
    if not folder.is_absolute():
        raise InstallError(
            f"{main}: {name} is {elements[0].text!r}, which is no absolute path; write one there "
            f"(ClickHouse takes spaces and line ends around it for a part of it), or use {option}"
        )
    return folder


def _unsure(tree: Element, name: str) -> bool:
    """Whether an element's value is one that only the server can resolve."""
    elements = tree.all(name)
    if not elements:
        # A whole part of the configuration may come from elsewhere, and this with it.
        return any(element.substituted for element in tree.all("include"))
    return any(element.substituted for element in elements)


def _unresolved(main: Path, name: str, option: str) -> InstallError:
    return InstallError(
        f"{main}: <{name}> takes its value from elsewhere (incl, from_env, from_zk), which only "
        f"the server can resolve, and its preprocessed configuration is missing or older; say it "
        f"with {option}"
    )


def _optional_folder(tree: Element, name: str) -> Path | None:
    elements = [element for element in tree.all(name) if not element.substituted]
    return Path(elements[0].text) if elements else None


def _port(tree: Element, name: str) -> int | None:
    for element in tree.all(name):
        if element.text.strip().isdigit():
            return int(element.text)
    return None
