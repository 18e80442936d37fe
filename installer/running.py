"""The running server of an installation: whether it can be reached, and whether it is the one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clickhouse_clip.installer.discover import Server
from clickhouse_clip.installer.findings import Finding, bad, note, reason, warning
from clickhouse_clip.installer.verify import Address, Client, data_dir_of

_RELOAD = "SYSTEM RELOAD CONFIG; SYSTEM RELOAD FUNCTIONS"

#: What ClickHouse listens on unless its configuration says otherwise.
_HTTP_PORT = 8123


@dataclass(frozen=True, slots=True)
class Running:
    """How to reach the server; None where no option says it."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody named a server, who then wants to know if it does not answer."""
        names = ("CLICKHOUSE_HOST", "CLICKHOUSE_PORT")
        return bool(self.host or self.port or any(os.environ.get(name) for name in names))

    def address(self, server: Server) -> Address:
        """Options before `CLICKHOUSE_*`, and these before the server's own configuration."""
        known = os.environ.get
        port = self.port or int(known("CLICKHOUSE_PORT") or 0)
        secure = port != 0 and port == server.https_port
        if not port:
            secure = server.http_port is None and server.https_port is not None
            port = (server.https_port if secure else server.http_port) or _HTTP_PORT
        return Address(
            self.host or known("CLICKHOUSE_HOST") or "localhost",
            port,
            self.user or known("CLICKHOUSE_USER") or "default",
            self.password or known("CLICKHOUSE_PASSWORD") or "",
            secure,
        )


def find_running(running: Running, server: Server) -> tuple[Client | None, list[Finding]]:
    """A client of the server that runs on this configuration, or why there is none."""
    address = running.address(server)
    where = f"{address.host}:{address.port}"
    if not address.answers():
        message = f"no server answers at {where}"
        if running.asked:
            return None, [bad(message, "is it started, and is that its HTTP port?")]
        return None, [note(f"{message}: the functions load when it starts")]
    try:
        client = address.connect()
        data_dir = data_dir_of(client)
    except Exception as error:
        message = f"the server at {where} cannot be asked as {address.user}: {reason(error)}"
        if running.asked or running.user:
            return None, [bad(message, "--user and --password, or CLICKHOUSE_USER and _PASSWORD")]
        remedy = f"name a user with --user and --password, or run {_RELOAD} yourself"
        return None, [warning(message, remedy)]
    if data_dir is not None and data_dir.resolve() != server.data_dir.resolve():
        message = f"the server at {where} is another one: its data is in {data_dir}"
        if running.asked:
            return None, [bad(message, f"name the one of {server.config_dir}")]
        return None, [note(f"{message}. The functions load when yours starts")]
    return client, []
