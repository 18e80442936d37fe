"""Finds out where a ClickHouse server keeps what the installer has to touch.

Reads the server's configuration the way the server merges it, as far as these few settings go, and
writes nothing. What it cannot resolve it refuses: a guess would put files where no server looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from clickhouse_clip.udf.errors import InstallError

_PATHS = ("path", "user_scripts_path", "user_files_path")

#: Attributes by which a server takes an element's value from elsewhere.
_SUBSTITUTIONS = ("incl", "from_env", "from_zk")

_ROOTS = ("clickhouse", "yandex")


@dataclass(frozen=True, slots=True)
class Server:
    """The folders of one server, all absolute."""

    config_dir: Path
    data_dir: Path
    user_scripts: Path
    user_files: Path


def discover(config_dir: Path, data_dir: Path) -> Server:
    """The server whose `config.xml` is in `config_dir`.

    Raises `InstallError` if there is none, if it cannot be read, or if it is another server's.
    """
    main = config_dir / "config.xml"
    if not main.is_file():
        yaml = "; config.yaml is not read" if (config_dir / "config.yaml").is_file() else ""
        raise InstallError(
            f"{config_dir}: has no config.xml{yaml}. Name the server's configuration folder with "
            "--config-dir, or add --standalone to make a minimal server there"
        )
    values: dict[str, str] = {}
    for file in (main, *_merged_files(config_dir)):
        _merge(values, file)
    if "path" in values and Path(values["path"]).resolve() != data_dir.resolve():
        raise InstallError(
            f"{main}: the server's data is in {values['path']}, not in {data_dir}; "
            "name that folder with --data-dir"
        )
    standard = standalone(config_dir, data_dir)
    return Server(
        config_dir,
        data_dir,
        _folder(values, "user_scripts_path", standard.user_scripts),
        _folder(values, "user_files_path", standard.user_files),
    )


def standalone(config_dir: Path, data_dir: Path) -> Server:
    """The server that a configuration without any paths makes in these folders."""
    return Server(config_dir, data_dir, data_dir / "user_scripts", data_dir / "user_files")


def _merged_files(config_dir: Path) -> Iterator[Path]:
    """What a server merges into `config.xml`, in its order (see `ConfigProcessor`).

    That is by the whole path, so all of `conf.d` comes before `config.d`.
    """
    for folder in (config_dir / "conf.d", config_dir / "config.d"):
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir()):
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.suffix.lower() in (".xml", ".conf"):
                yield file
            elif file.suffix.lower() in (".yaml", ".yml"):
                _refuse_paths_in_yaml(file)


def _refuse_paths_in_yaml(file: Path) -> None:
    text = _read(file).decode(errors="replace")
    for line in text.splitlines():
        if line.split(":")[0].strip("'\" ") in _PATHS and not line.startswith((" ", "\t")):
            raise InstallError(
                f"{file}: sets {line.split(':')[0]}, and YAML is not read; set it in an XML file"
            )


def _merge(values: dict[str, str], file: Path) -> None:
    """Put what `file` says over `values`, as `ConfigProcessor::mergeRecursive` does."""
    try:
        root = ElementTree.fromstring(_read(file))
    except ElementTree.ParseError as error:
        raise InstallError(f"{file}: is no valid XML ({error})") from error
    if root.tag not in _ROOTS:
        raise InstallError(f"{file}: its root is <{root.tag}>, and a server wants <clickhouse>")
    for name in _PATHS:
        elements = root.findall(name)
        if not elements:
            continue
        if len(elements) > 1:
            raise InstallError(
                f"{file}: has more than one <{name}>, and which of them counts differs between "
                "versions of ClickHouse; leave one"
            )
        (element,) = elements
        if "remove" in element.attrib:
            values.pop(name, None)
            continue
        if any(attribute in element.attrib for attribute in _SUBSTITUTIONS):
            raise InstallError(
                f"{file}: <{name}> takes its value from elsewhere, which only the server "
                "can resolve; write the path itself there"
            )
        values[name] = element.text or ""


def _folder(values: dict[str, str], name: str, standard: Path) -> Path:
    if name not in values:
        return standard
    folder = Path(values[name])
    if not folder.is_absolute():
        raise InstallError(
            f"{name} is {values[name]!r} in the server's configuration, which is no absolute path; "
            "write one there (ClickHouse takes spaces and line ends around it for a part of it)"
        )
    return folder


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InstallError(
            f"{file}: cannot be read ({error.strerror}); run install-udfs as a user who can"
        ) from error
