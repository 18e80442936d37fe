"""`--check` and `--uninstall`. Each returns what there is to say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from clickhouse_clip.installer import doctor, place, uninstall
from clickhouse_clip.installer.findings import Finding, bad, note, reason, warning
from clickhouse_clip.installer.owner import find_owner
from clickhouse_clip.installer.record import FILE, FOLDER, load_record
from clickhouse_clip.installer.report import Outcome
from clickhouse_clip.installer.request import Request, find_server, ids_of
from clickhouse_clip.installer.running import Running, find_running
from clickhouse_clip.installer.surroundings import look_around
from clickhouse_clip.installer.verify import Client, Expected, picture_folder, reload, verify
from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.errors import ClipError, InstallError
from clickhouse_clip.udf.settings import Settings


def check(request: Request, running: Running, progress: Callable[[str], None]) -> Outcome:
    """Look at an installation on this machine, and ask its server if that runs."""
    if request.root.directory is not None:
        raise InstallError("--check looks at a running system: leave --root out")
    server = find_server(request)
    record = load_record(server.config_dir / FOLDER / FILE)
    outcome = Outcome(status="checked")
    if record is None:
        outcome.findings.append(
            bad(f"{server.config_dir}: nothing is installed there", "run install-udfs --bundle")
        )
        return outcome
    owner = find_owner(server.data_dir, request.root)
    outcome.findings += doctor.check(server, record, owner, look_around(), progress)
    client, findings = find_running(running, server)
    outcome.findings += findings
    if client is None:
        return outcome
    try:
        settings = Settings.load(server.config_dir / FOLDER / "settings.json")
        expected = Expected.of(settings, load_manifest(settings.bundle))
        outcome.findings += verify(
            client, record.options, expected, picture_folder(settings), ids_of(owner)
        )
    except ClipError:
        pass  # what is wrong with settings or bundle has been said
    except Exception as error:
        outcome.findings.append(
            bad(f"the server does not answer: {reason(error)}", "a user who may read system tables")
        )
    return outcome


def remove(request: Request, running: Running, *, dry_run: bool) -> Outcome:
    """Take the installation back, and tell a running server."""
    root = request.root
    config_dir = root.at(request.config_dir)
    if not config_dir.is_dir():
        raise InstallError(f"{config_dir}: no such folder; name it with --config-dir")
    with contextlib.nullcontext() if dry_run else place.prepared(config_dir, None):
        removal = uninstall.plan_removal(request.config_dir, root, force=request.force)
        if removal is None:
            nothing = note(f"{config_dir}: nothing is installed there")
            return Outcome(status="unchanged", findings=[nothing])
        if dry_run:
            return Outcome(status="would-change", changes=removal.placed)
        outcome = Outcome(status="uninstalled", changes=removal.placed)
        client, outcome.findings = _find(request, running)
        uninstall.remove_files(request.config_dir, removal, root)
        if client is not None:
            outcome.findings += _reload(client)
        outcome.findings += uninstall.clean_up(removal, root)
    return outcome


def _find(request: Request, running: Running) -> tuple[Client | None, list[Finding]]:
    """The running server, as far as it can be found: a broken one can be uninstalled, too."""
    if request.root.directory is not None:
        return None, []
    try:
        client, findings = find_running(running, find_server(request))
    except ClipError:
        return None, []
    return client, [finding for finding in findings if finding.level != "note"]


def _reload(client: Client) -> Iterator[Finding]:
    try:
        reload(client)
    except Exception as error:
        yield warning(
            f"the running server was not told: {reason(error)}",
            "SYSTEM RELOAD CONFIG; SYSTEM RELOAD FUNCTIONS",
        )
