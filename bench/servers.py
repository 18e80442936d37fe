"""Scratch servers on the embedded engine: one with our functions, one with the baseline's."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from xml.sax.saxutils import escape

from clickhouse_clip.installer.cli import main as install_udfs
from clickhouse_clip.udf.launch import request_report
from tests.embedded.engine import Engine

_BASELINE = """<functions>
    <function>
        <type>executable_pool</type>
        <name>{name}</name>
        <return_type>Array(Float32)</return_type>
        <argument><type>String</type><name>value</name></argument>
        <format>TabSeparated</format>
        <command>{script}</command>
        <pool_size>1</pool_size>
        <stderr_reaction>none</stderr_reaction>
        <command_read_timeout>1000000</command_read_timeout>
        <command_write_timeout>1000000</command_write_timeout>
        <max_command_execution_time>1000000</max_command_execution_time>
    </function>
</functions>
"""


class Server:
    """A scratch server's folders, with our functions installed; the engine is started by `open`."""

    def __init__(self, folder: Path, bundle: Path, pictures: Path, *options: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.config, self.data = folder / "config", folder / "data"
        arguments = ["--bundle", str(bundle), "--standalone", "--image-root", str(pictures)]
        folders = ["--config-dir", str(self.config), "--data-dir", str(self.data)]
        with redirect_stdout(StringIO()):
            if install_udfs([*arguments, *folders, *options]):
                raise RuntimeError("install-udfs failed")
        self.runtime = self.data / "clickhouse-clip" / "run"

    @contextmanager
    def open(self) -> Iterator[Engine]:
        """The engine on this server; afterwards engine, workers and encoder are gone."""
        engine = Engine(Path(sys.executable), self.data, self.config / "config.xml")
        try:
            engine.query("SELECT 1")
            yield engine
        finally:
            engine.close()
            self.stop_encoder()

    def stop_encoder(self) -> None:
        """End the encoder service, and wait until it has gone."""
        if not self.runtime.is_dir():
            return
        report = request_report(str(self.runtime), "stop")
        while report is not None and Path(f"/proc/{report['pid']}/exe").exists():
            time.sleep(0.02)


class BaselineServer(Server):
    """The same, and the baseline's functions `baseline_text` and `baseline_image`."""

    def __init__(self, folder: Path, bundle: Path, pictures: Path, checkpoint: Path) -> None:
        super().__init__(folder, bundle, pictures)
        scripts = Path(__file__).parent / "baseline"
        for kind in ("text", "image"):
            script = self.data / "user_scripts" / f"baseline_{kind}.sh"
            script.write_text(
                f"#!/bin/sh\nexec '{sys.executable}' '{scripts}/encode_{kind}.py' '{checkpoint}'\n"
            )
            script.chmod(0o755)
            xml = _BASELINE.format(name=f"baseline_{kind}", script=escape(script.name))
            (self.config / f"baseline_{kind}_function.xml").write_text(xml)
