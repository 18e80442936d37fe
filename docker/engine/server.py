"""ClickHouse's engine, embedded, behind as much of a server's HTTP interface as its driver needs.

A stand-in for tests, not a server: it reads its configuration once, so SYSTEM RELOAD CONFIG does
nothing; it has one user, whom CLICKHOUSE_USER and CLICKHOUSE_PASSWORD name; it runs no startup
scripts. Everything else is the engine's own: SQL, formats, executable functions, errors.
"""

from __future__ import annotations

import argparse
import base64
import http.server
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import chdb
import lz4.frame

#: What of a URL's parameters is no setting of the query.
_NO_SETTINGS = frozenset(
    (
        "query",
        "database",
        "default_format",
        "user",
        "password",
        "wait_end_of_query",
        "session_id",
        "query_id",
        "client_protocol_version",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "enable_http_compression",
        "cancel_http_readonly_queries_on_client_close",
    )
)

_RELOAD_CONFIG = re.compile(rb"\s*SYSTEM\s+RELOAD\s+CONFIG\b", re.IGNORECASE)

_CODE = re.compile(r"Code: (\d+)")

_AUTHENTICATION_FAILED = 516


class Engine:
    """The engine on one configuration; every query has a connection of its own, as over HTTP."""

    def __init__(self, config_file: Path, data_dir: Path) -> None:
        self._target = f"{data_dir}?config-file={config_file}"
        # The engine lives as long as it has a connection.
        self._first = chdb.connect(self._target)

    def query(self, sql: bytes, parameters: dict[str, str]) -> bytes:
        """What a query answers; `parameters` are those of the URL."""
        if _RELOAD_CONFIG.match(sql):
            return b""
        connection = chdb.connect(self._target)
        try:
            if parameters.get("database"):
                connection.query(f"USE {_quoted(parameters['database'], '`')}")
            for name, value in parameters.items():
                if name not in _NO_SETTINGS and not name.startswith("param_"):
                    quoted = _quoted(value, "'")
                    connection.query(f"SET {_quoted(name, '`')} = {quoted}")
            values = {
                name.removeprefix("param_"): value
                for name, value in parameters.items()
                if name.startswith("param_")
            }
            answer = connection.query(
                sql, parameters.get("default_format", "TabSeparated"), params=values
            )
            return bytes(answer.bytes())
        finally:
            connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        """/ping, or a query in the URL."""
        if urlsplit(self.path).path == "/ping":
            self._answer(200, b"Ok.\n")
        else:
            self.do_POST()

    def do_POST(self) -> None:
        """A query: in the URL, in the body, or begun there and its data in the body."""
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = b"".join(self._body())
        encoding = self.headers.get("Content-Encoding")
        if not self._is_user(parameters):
            message = b"Code: 516. DB::Exception: Authentication failed. (AUTHENTICATION_FAILED)"
            self._answer(403, message, _AUTHENTICATION_FAILED)
            return
        if encoding == "lz4":
            body = lz4.frame.decompress(body)
        elif encoding:
            self._answer(501, f"Content-Encoding: {encoding}: the stand-in knows lz4".encode())
            return
        in_url = parameters.get("query", "").encode()
        sql = in_url + b"\n" + body if in_url and body else in_url + body
        try:
            answer = self.engine.query(sql, parameters)
        except Exception as error:
            code = _CODE.search(str(error))
            self._answer(500, str(error).encode(), int(code[1]) if code else 1000)
        else:
            self._answer(200, answer)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _is_user(self, parameters: dict[str, str]) -> bool:
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            user, _, password = base64.b64decode(secret).decode().partition(":")
        else:
            user = self.headers.get("X-ClickHouse-User") or parameters.get("user") or "default"
            password = self.headers.get("X-ClickHouse-Key") or parameters.get("password", "")
        return (user, password) == (
            os.environ.get("CLICKHOUSE_USER") or "default",
            os.environ.get("CLICKHOUSE_PASSWORD", ""),
        )

    def _answer(self, status: int, data: bytes, code: int = 0) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Only what went wrong."""
        if arguments[1:2] != ("200",):
            super().log_message(format, *arguments)


class Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, as many as wait."""

    request_queue_size = 128


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def _setting(config: ElementTree.Element, name: str) -> str:
    """A value of the main configuration file; drop-ins are the engine's business."""
    value = config.findtext(name)
    if not value:
        sys.exit(f"the configuration has no <{name}>")
    return value.strip()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", type=Path, required=True)
    parser.add_argument("--port", type=int, help="instead of the configuration's; 0: any")
    arguments = parser.parse_args()
    config = ElementTree.parse(arguments.config_file).getroot()
    port = int(_setting(config, "http_port")) if arguments.port is None else arguments.port
    # Where a server looks for relative paths; the embedded engine takes its own folder.
    os.chdir(_setting(config, "user_files_path"))
    Handler.engine = Engine(arguments.config_file, Path(_setting(config, "path")))
    with Server(("", port), Handler) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"listening on port {server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)
    # Connections that clients keep open must not hold the process.
    os._exit(0)


if __name__ == "__main__":
    main()
