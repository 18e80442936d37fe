"""`--check`: looks at everything that a call needs, and says what is wrong and what to do.

Reads only. Each part yields findings, and none of them gives up on what the one before it found.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from clickhouse_clip.installer import service, transaction
from clickhouse_clip.installer.collisions import defined_functions
from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.findings import Finding, bad, good, note, warning
from clickhouse_clip.installer.owner import Owner
from clickhouse_clip.installer.plan import sql_name
from clickhouse_clip.installer.record import FOLDER, Record
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.surroundings import Surroundings, unreachable
from clickhouse_clip.udf.bundle import Manifest, load_manifest, verify
from clickhouse_clip.udf.catalog import FUNCTIONS
from clickhouse_clip.udf.errors import BundleError, ServiceError, SettingsError
from clickhouse_clip.udf.settings import Settings

_AGAIN = "run install-udfs again"

#: Lines of the log that are shown.
_LOG_LINES = 3
_LOG_TAIL_BYTES = 1 << 16


def check(
    server: Server,
    record: Record,
    owner: Owner | None,
    surroundings: Surroundings,
    progress: Callable[[str], None],
) -> Iterator[Finding]:
    """Every finding about an installation on this machine, except what the server itself says."""
    if transaction.interrupted(server.config_dir):
        yield bad("an earlier run was interrupted", f"{_AGAIN}: it undoes what that one began")
    yield from _files(record, owner)
    yield from _definitions(server, record)
    yield from _interpreter(Path(record.interpreter))
    for folder in {Path(record.user_scripts)}:
        mount = surroundings.mount_of(folder)
        if mount is not None and "noexec" in mount.options:
            yield bad(
                f"{folder}: lies on {mount.point}, which is mounted noexec",
                f"mount {mount.point} without noexec, or move user_scripts_path",
            )
    if surroundings.selinux_enforcing:
        yield note("SELinux is enforcing", "where a query is refused, ausearch -m avc says why")
    settings_file = server.config_dir / FOLDER / "settings.json"
    try:
        settings = Settings.load(settings_file)
    except SettingsError as error:
        yield bad(str(error), f"correct it, or remove {settings_file} and {_AGAIN}")
        return
    yield from _bundle(settings, progress)
    if owner is not None:
        yield from unreachable(owner, Path(record.interpreter), settings.bundle)
    yield from _service(settings, owner)
    yield from _log(settings.log_file)


def _files(record: Record, owner: Owner | None) -> Iterator[Finding]:
    sound = 0
    for name, known in record.files.items():
        path = Path(name)
        try:
            status = path.lstat()
            content = path.read_bytes()
        except OSError as error:
            yield bad(f"{path}: {error.strerror}", _AGAIN)
            continue
        wanted = 0o755 if path.suffix == ".py" else 0o644
        if transaction.digest(content) != known:
            yield note(
                f"{path}: was edited since it was placed",
                "it is kept; install-udfs --force makes it anew",
            )
        if stat.S_IMODE(status.st_mode) != wanted:
            yield bad(f"{path}: has mode {stat.S_IMODE(status.st_mode):o}, not {wanted:o}", _AGAIN)
        elif owner is not None and status.st_uid not in (owner.uid, os.geteuid()):
            yield warning(
                f"{path}: belongs to user {status.st_uid}, and the server runs as {owner.uid}",
                f"{_AGAIN} as root",
            )
        else:
            sound += 1
    if sound == len(record.files):
        yield good(f"{sound} files are in place")


def _definitions(server: Server, record: Record) -> Iterator[Finding]:
    functions_file = str(server.config_dir / FOLDER / "functions.xml")
    if functions_file in server.patterns:
        yield good("the server's configuration names the functions' definitions")
    else:
        yield bad(
            "user_defined_executable_functions_config: the server's configuration does not name "
            f"{functions_file}",
            f"{_AGAIN}; if it stays so, another file in config.d replaces or removes our element",
        )
    ours = {sql_name(record.options, function) for function in FUNCTIONS}
    for name, place in defined_functions(server, Root()):
        if name in ours:
            yield bad(
                f"{name}: is defined a second time, in {place}",
                "remove that one, or install ours with --prefix",
            )
    warm = any(Path(name).name.startswith("zzz-") for name in record.files)
    if warm and server.startup_must_succeed:
        yield warning(
            "startup_scripts.throw_on_error is set: if the model is missing, the server with its "
            "warm-up does not start",
            "install-udfs --no-warmup",
        )


def _interpreter(interpreter: Path) -> Iterator[Finding]:
    if not interpreter.exists():
        yield bad(
            f"{interpreter}: is gone, so workers cannot start ('Broken pipe' in a query)",
            "install the package again and run its install-udfs",
        )
        return
    try:
        process = subprocess.run(
            [interpreter, "-IBc", "import clickhouse_clip.udf.worker"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = process.stderr.strip().splitlines() if process.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        lines = [str(error)]
    if lines:
        yield bad(
            f"{interpreter}: cannot load the package: {lines[-1]}",
            f"{interpreter} -m pip install clickhouse-clip",
        )
    else:
        yield good(f"{interpreter} loads the package")


def _bundle(settings: Settings, progress: Callable[[str], None]) -> Iterator[Finding]:
    try:
        manifest = load_manifest(settings.bundle)
        progress("checking the bundle's hashes")
        verify(settings.bundle, manifest)
    except BundleError as error:
        yield bad(str(error), "install-udfs --bundle FOLDER names another one")
    else:
        yield good(f"{settings.bundle}: {model_line(manifest)}, its files are whole")


def model_line(manifest: Manifest) -> str:
    """A model in a few words."""
    return f"{manifest.model} ({manifest.weights}), {manifest.embedding_dim} dimensions"


def _service(settings: Settings, owner: Owner | None) -> Iterator[Finding]:
    folder = settings.runtime_dir
    if not folder.exists():
        yield good("no encoder service yet: the first query starts it")
        return
    status = folder.stat()
    foreign = owner is not None and status.st_uid != owner.uid
    if foreign or stat.S_IMODE(status.st_mode) & 0o077:
        yield bad(
            f"{folder}: must belong to the server's user alone, and it belongs to user "
            f"{status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}",
            f"rm -r {folder}; the next query makes it anew",
        )
        return
    try:
        report = service.status(settings)
    except ServiceError as error:
        yield bad(f"the encoder service: {error}", "clip-encoder stop; the next query starts it")
        return
    if report is None:
        yield good("no encoder service runs: the next query starts it")
    else:
        yield good(
            f"the encoder service runs: process {report['pid']}, version {report['version']}, "
            f"{report['memory_bytes'] / 2**20:,.0f} MiB, {report['workers']} workers"
        )


def _log(log_file: Path) -> Iterator[Finding]:
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        yield warning(f"{log_file}: {error.strerror}", "run --check as root")
        return
    for line in [line for line in lines if " ERROR " in line][-_LOG_LINES:]:
        yield note(f"in the log: {line}", f"{log_file} has the rest")
