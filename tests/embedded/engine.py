"""The tests' side of an embedded engine in another process (see host.py)."""

from __future__ import annotations

import json
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

Rows = list[list[Any]]


class QueryError(Exception):
    """What ClickHouse says of a query that failed."""


class Engine:
    """A running engine; `query` may be called from several threads."""

    def __init__(self, python: Path, data_dir: Path, config_file: Path) -> None:
        self.process = subprocess.Popen(
            [
                str(python.absolute()),
                str(Path(__file__).with_name("host.py")),
                str(data_dir),
                str(config_file),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Where a server looks for relative paths; the embedded engine takes its own folder.
            cwd=data_dir / "user_files",
        )
        self._answers: dict[int, Future[Rows]] = {}
        self._lock = threading.Lock()
        self._sent = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, sql: str, **parameters: Any) -> Future[Rows]:
        """Begin a query; the future raises `QueryError` if it fails.

        `parameters` are ClickHouse's own, `{name:Type}`; older engines take none here.
        """
        assert self.process.stdin is not None
        with self._lock:
            self._sent += 1
            answer: Future[Rows] = Future()
            self._answers[self._sent] = answer
            request = {"id": self._sent, "sql": sql, "parameters": parameters or None}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return answer

    def query(self, sql: str, timeout: float = 300, **parameters: Any) -> Rows:
        """The rows of a query."""
        return self.start(sql, **parameters).result(timeout)

    def value(self, sql: str) -> Any:
        """The one value of a query."""
        return self.query(sql)[0][0]

    def close(self) -> None:
        """Stop the engine, and with it its workers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self._reader.join(10)
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            future = self._answers.pop(answer["id"])
            if "error" in answer:
                future.set_exception(QueryError(answer["error"]))
            else:
                future.set_result(answer["rows"])
        for future in self._answers.values():
            future.set_exception(QueryError("the engine has gone"))
