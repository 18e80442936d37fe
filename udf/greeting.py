"""How a peer introduces itself to the service: who it is, and its HELLO."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Literal

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.errors import ProtocolError, ServiceError
from clickhouse_clip.udf.launch import peer_of

#: A peer that has connected says HELLO at once.
_HELLO_SECONDS = 10.0

#: Bytes of a HELLO at most.
_HELLO_MAX = 1 << 16

_ROLES = ("worker", "status", "stop")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a peer wants. All but `role` and `version` are a worker's.

    settings: SHA-256 of the settings file, in hex.
    skip: rows of the first block that a former service has answered.
    """

    role: Literal["worker", "status", "stop"]
    version: str
    protocol: int = 0
    settings: str = ""
    function: str = ""
    skip: int = 0


def receive_hello(connection: socket.socket) -> Hello:
    """The peer's HELLO. Raises `ServiceError` or `ProtocolError` for a peer to be refused."""
    _check_peer(connection)
    received = frames.FrameReader((frames.HELLO,), _HELLO_MAX)
    deadline = time.monotonic() + _HELLO_SECONDS
    connection.settimeout(_HELLO_SECONDS)
    while data := connection.recv(65536):
        for _, _, payload in received.feed(data):
            connection.settimeout(None)
            return _parse(payload)
        connection.settimeout(max(0.001, deadline - time.monotonic()))
    raise ServiceError("it left without a HELLO")


def _parse(payload: bytes) -> Hello:
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a HELLO that is no JSON: {error}") from error
    if not isinstance(values, dict) or values.get("role") not in _ROLES:
        raise ProtocolError("a HELLO without a role")
    kinds: dict[str, type] = {"version": str}
    if values["role"] == "worker":
        kinds |= {"protocol": int, "settings": str, "function": str, "skip": int}
    for name, kind in kinds.items():
        if type(values.get(name)) is not kind:
            raise ProtocolError(f"a HELLO without {name}")
    if values.get("skip", 0) < 0:
        raise ProtocolError("a HELLO that skips less than no row")
    return Hello(values["role"], **{name: values[name] for name in kinds})


def _check_peer(connection: socket.socket) -> None:
    pid, user = peer_of(connection)
    if user not in (os.geteuid(), 0):
        raise ServiceError(f"process {pid} of user {user} is not the server's")
