"""What somebody asks of the installer, and what follows from it and from what is there.

Reads only: the result is a plan, and what carrying it out would change.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from clickhouse_clip.installer import disk, model
from clickhouse_clip.installer.compare import Placed, compare
from clickhouse_clip.installer.discover import Folders, Server, discover, find_main, standalone
from clickhouse_clip.installer.findings import Finding
from clickhouse_clip.installer.owner import Owner, find_owner
from clickhouse_clip.installer.plan import Plan, make_plan
from clickhouse_clip.installer.record import FILE, FOLDER, Options, Record, load_record
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.surroundings import look_around, obstacles
from clickhouse_clip.udf.errors import InstallError, SettingsError
from clickhouse_clip.udf.settings import Precision, Settings


@dataclass(frozen=True, slots=True)
class Request:
    """One run's options; None means: as an earlier run left it, or the default."""

    config_dir: Path
    named: Folders
    root: Root
    standalone: bool = False
    bundle: str | None = None
    source: model.Source | None = None
    image_roots: tuple[Path, ...] = ()
    precision: Precision | None = None
    pool_size: int | None = None
    prefix: str | None = None
    warmup: bool | None = None
    python: Path | None = None
    force: bool = False

    @property
    def fresh(self) -> bool:
        """Whether a minimal server is to be made."""
        return self.standalone and find_main(self.config_dir, self.root) is None


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, its effect, what there is to say, and a model that has to be exported first."""

    plan: Plan
    settings: Settings
    record: Record | None
    placed: tuple[Placed, ...]
    findings: tuple[Finding, ...]
    export: model.Source | None

    @property
    def ids(self) -> disk.Ids | None:
        """Who gets what is placed: only root gives files away."""
        return ids_of(self.plan.owner)


def ids_of(owner: Owner | None) -> disk.Ids | None:
    """The numbers of an owner that this process can give files to."""
    return None if owner is None or os.geteuid() != 0 else (owner.uid, owner.gid)


def find_server(request: Request) -> Server:
    """The server that is asked for; `InstallError` if it cannot be found or is none."""
    if not request.fresh:
        server = discover(request.config_dir, request.named, request.root)
        if request.root.directory is None and not server.data_dir.is_dir():
            raise InstallError(
                f"{server.data_dir}: no such folder; name the server's data folder with --data-dir"
            )
        return server
    if request.named.data_dir is None:
        raise InstallError("--standalone: name a folder for the server's data with --data-dir")
    return standalone(request.config_dir, request.named.data_dir)


def decide(request: Request) -> Decision:
    """What to place where; `InstallError` or another `ClipError` says why it cannot be."""
    root = request.root
    server = find_server(request)
    private = root.at(server.config_dir / FOLDER)
    record = load_record(private / FILE)
    earlier, text = _earlier_settings(private / "settings.json", force=request.force)
    bundle, export = _bundle(request, server, earlier)
    settings = _settings(request, server, earlier, bundle)
    known = Options() if record is None else record.options
    options = Options(
        known.pool_size if request.pool_size is None else request.pool_size,
        known.prefix if request.prefix is None else request.prefix,
        known.warmup if request.warmup is None else request.warmup,
    )
    if options.warmup and server.startup_must_succeed:
        raise InstallError(
            "--warmup: the server's startup_scripts have throw_on_error, so a model that is "
            "missing would keep the server from starting; remove that setting, or do without"
        )
    # A server that is made now belongs to who makes it.
    unborn = request.fresh and not root.at(server.data_dir).is_dir()
    plan = make_plan(
        server,
        settings,
        interpreter=_interpreter(request),
        options=options,
        owner=None if unborn else find_owner(server.data_dir, root),
        settings_text=text if settings == earlier else None,
        with_server_config=request.fresh,
    )
    findings = tuple(obstacles(plan, look_around(), root))
    for finding in findings:
        if finding.level == "error":
            raise InstallError(f"{finding.message}; {finding.remedy}")
    placed = compare(plan, record, root, ids_of(plan.owner), force=request.force)
    return Decision(plan, settings, record, placed, findings, export)


def _earlier_settings(file: Path, *, force: bool) -> tuple[Settings | None, str | None]:
    if not file.is_file():
        return None, None
    try:
        text = file.read_text()
        return Settings.from_json(text), text
    except (SettingsError, OSError, ValueError) as error:
        if force:
            return None, None
        raise InstallError(
            f"{file}: {error}; correct it, or let --force make it anew from the options"
        ) from error


def _bundle(
    request: Request, server: Server, earlier: Settings | None
) -> tuple[Path, model.Source | None]:
    """The bundle, as the running system calls it, and what it has to be exported from."""
    root = request.root
    if request.bundle is not None:
        return root.seen(model.named_bundle(request.bundle)), None
    if request.source is not None:
        folder = request.source.folder(server.data_dir)
        if root.at(folder / "manifest.json").is_file():
            return folder, None
        model.refuse_without_torch(request.source)
        return folder, request.source
    if earlier is not None:
        return earlier.bundle, None
    raise InstallError(
        "which model? --bundle FOLDER names a bundle (clip-bundle export makes one), --bundle demo "
        "a small one for trying out, --model and --pretrained export one now"
    )


def _settings(request: Request, server: Server, earlier: Settings | None, bundle: Path) -> Settings:
    for folder in request.image_roots:
        if not request.root.at(folder).is_dir():
            raise InstallError(f"--image-root {folder}: no such folder")
    own = server.data_dir / FOLDER
    settings = earlier or Settings(
        bundle=bundle,
        runtime_dir=own / "run",
        log_file=own / "log" / "encoder.log",
        image_roots=(server.user_files,),
    )
    roots = dict.fromkeys((*settings.image_roots, *request.image_roots))
    return replace(
        settings,
        bundle=bundle,
        image_roots=tuple(roots),
        precision=request.precision or settings.precision,
    )


def _interpreter(request: Request) -> Path:
    """Python as the running system will call it."""
    interpreter = request.python or request.root.seen(Path(sys.executable))
    place = request.root.at(interpreter)
    # Not exists(): in an image's tree a link leads to where it will be.
    if not place.exists() and not place.is_symlink():
        raise InstallError(
            f"{place}: there is no Python in the image; install the package below --root, and name "
            "its interpreter, as the running system will see it, with --python"
        )
    return interpreter
