"""The installation: decided, tried, placed, and verified on the running server."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clickhouse_clip.installer import disk, doctor, model, place, preflight, service, transaction
from clickhouse_clip.installer.collisions import refuse_taken_names
from clickhouse_clip.installer.findings import Finding, bad, note, reason, warning
from clickhouse_clip.installer.report import Outcome
from clickhouse_clip.installer.request import Decision, Request, decide, find_server
from clickhouse_clip.installer.running import Running, find_running
from clickhouse_clip.installer.verify import (
    Client,
    Expected,
    foreign_names,
    picture_folder,
    reload,
    verify,
)
from clickhouse_clip.udf.bundle import Manifest, load_manifest
from clickhouse_clip.udf.errors import InstallError


@dataclass(frozen=True, slots=True)
class Installation:
    """A request, how to reach the running server, and where to tell of long steps."""

    request: Request
    running: Running
    progress: Callable[[str], None]

    def run(self, *, dry_run: bool, try_first: bool) -> Outcome:
        """Put the functions in place; `try_first` calls them on an embedded engine before.

        Raises `ClipError`, and then everything is as it was.
        """
        request = self.request
        config_dir = request.root.at(request.config_dir)
        if try_first:
            preflight.refuse_without_engine()
            if request.root.directory is not None:
                raise InstallError("--preflight runs the server's scripts: leave --root out")
        if dry_run:
            return self._dry_run(config_dir)
        if transaction.interrupted(config_dir):
            with place.prepared(config_dir, None):
                pass  # what an interrupted run had begun is gone now
        with place.prepared(config_dir, decide(request).ids) as made:
            decision = decide(request)
            client, findings = self._refuse_taken_names(decision)
            with self._exported(decision) as (folders, bundles):
                manifest = load_manifest(request.root.at(decision.plan.bundle))
                new = (*made, *folders)
                changed = self._place(decision, manifest, new, bundles, findings, try_first)
        outcome = _outcome(decision, "installed" if changed else "unchanged", manifest)
        outcome.findings += findings
        if client is not None:
            outcome.findings += self._verify(client, decision, manifest)
        return outcome

    def _dry_run(self, config_dir: Path) -> Outcome:
        decision = decide(self.request)
        _, findings = self._refuse_taken_names(decision)
        manifest = None
        if decision.export is None:
            manifest = load_manifest(self.request.root.at(decision.plan.bundle))
        needed = place.is_needed(decision.plan, decision.placed, decision.record)
        outcome = _outcome(decision, "would-change" if needed else "unchanged", manifest)
        outcome.findings += findings
        if decision.export is not None:
            outcome.findings.append(
                note(f"{decision.plan.bundle}: the model would be exported there")
            )
        if transaction.interrupted(config_dir):
            outcome.status = "would-change"
            outcome.findings.append(
                note("an earlier run was interrupted: it would be undone first")
            )
        return outcome

    def _refuse_taken_names(self, decision: Decision) -> tuple[Client | None, list[Finding]]:
        """The running server, which is asked for its functions, and why there may be none."""
        client: Client | None = None
        findings: list[Finding] = []
        if self.request.root.directory is None and not self.request.fresh:
            client, findings = find_running(self.running, decision.plan.server)
        known = {}
        try:
            if client is not None:
                known = foreign_names(client, decision.plan.functions)
        except Exception as error:
            findings.append(
                warning(
                    f"the server does not say which functions it has: {reason(error)}",
                    "a user with the right to read system.functions",
                )
            )
        refuse_taken_names(decision.plan, self.request.root, known)
        return client, findings

    @contextlib.contextmanager
    def _exported(self, decision: Decision) -> Iterator[tuple[list[Path], list[Path]]]:
        """Make the bundle, if it has to be made; gives the folders and the bundles that are new.

        They are removed again if the block fails.
        """
        folders: list[Path] = []
        bundles = [] if decision.export is None else [self.request.root.at(decision.plan.bundle)]
        try:
            for bundle in bundles:
                for folder in reversed(bundle.parents):
                    if not folder.is_dir():
                        folders.append(folder)
                        disk.make_folder(folder, decision.ids)
                assert decision.export is not None
                model.export(decision.export, bundle, self.progress)
                if decision.ids is not None:
                    for path in (bundle, *bundle.rglob("*")):
                        os.chown(path, *decision.ids)
            yield folders, [decision.plan.bundle for _ in bundles]
        except BaseException:
            for bundle in bundles:
                shutil.rmtree(bundle, ignore_errors=True)
            for folder in reversed(folders):
                with contextlib.suppress(OSError):
                    disk.remove_folder(folder)
            raise

    def _place(
        self,
        decision: Decision,
        manifest: Manifest,
        made: Sequence[Path],
        bundles: Sequence[Path],
        findings: list[Finding],
        try_first: bool,
    ) -> bool:
        """Carry the plan out; whether there was anything to do."""
        plan = decision.plan

        def try_functions() -> None:
            self.progress("calling the functions on an embedded engine")
            server = find_server(self.request)
            fresh = not decision.settings.runtime_dir.exists()
            tried = preflight.preflight(
                server,
                plan.options,
                Expected.of(decision.settings, manifest),
                picture_folder(decision.settings),
                plan.owner if decision.ids is not None else None,
            )
            if fresh:  # else the service is the running server's
                service.stop(decision.settings)
                service.clear(decision.settings)
            wrong = [finding for finding in tried if finding.level == "error"]
            if wrong:
                raise InstallError(f"the preflight failed: {wrong[0].message}; nothing is changed")
            findings.extend(replace(f, message=f"preflight: {f.message}") for f in tried)

        needed = place.is_needed(plan, decision.placed, decision.record)
        check = try_functions if try_first else lambda: None
        if needed or bundles:
            place.place(
                plan,
                decision.placed,
                decision.record,
                self.request.root,
                decision.ids,
                made=made,
                bundles=bundles,
                check=check,
            )
        else:
            check()
        return needed or bool(bundles)

    def _verify(self, client: Client, decision: Decision, manifest: Manifest) -> Iterator[Finding]:
        self.progress("reloading the server's functions and calling each")
        try:
            reload(client)
            yield from verify(
                client,
                decision.plan.options,
                Expected.of(decision.settings, manifest),
                picture_folder(decision.settings),
                decision.ids,
            )
        except Exception as error:
            yield bad(
                f"everything is in place, and the server does not reload: {reason(error)}",
                "a user with the rights SYSTEM RELOAD CONFIG and FUNCTION, or a restart",
            )


def _outcome(decision: Decision, status: str, manifest: Manifest | None) -> Outcome:
    return Outcome(
        status=status,
        changes=decision.placed,
        functions=decision.plan.functions,
        model="" if manifest is None else doctor.model_line(manifest),
        owner=decision.plan.owner,
        findings=[*decision.findings, *_kept(decision)],
    )


def _kept(decision: Decision) -> Iterator[Finding]:
    for entry in decision.placed:
        if entry.change == "kept":
            yield warning(
                f"{entry.file.path}: was edited since it was placed, and is kept",
                "--dry-run shows what differs; --force replaces it",
            )
