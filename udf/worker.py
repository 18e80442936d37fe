"""The worker: what `executable_pool` starts, one process per borrowed slot.

It owns stdin and stdout, and passes blocks on to the encoder service; it decodes no text, opens no
picture and holds no model. It writes exactly the rows it owes, whatever happens: an error goes to
stderr when the whole block has been read, followed by empty rows, so that the query fails with the
message and the next query finds a clean worker. Nothing but that is ever written to either.

It waits for a service that says that it is alive, and ends one that says nothing.
"""

from __future__ import annotations

import collections
import os
import select
import signal
import socket
import time

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.errors import ClipError, ProtocolError, ServiceError
from clickhouse_clip.udf.launch import connect, end_hung
from clickhouse_clip.udf.native import BlockReader, empty_rows, is_array_block

_READ_SIZE = 1 << 18

#: How much of a block is kept, to send it again if the service dies. Blocks of texts and paths are
#: smaller; one of picture bytes can be gigabytes, and holding it would cost more than it saves.
_KEEP_MAX = 16 << 20

#: Above this much unsent input the worker stops reading, so that ClickHouse waits, not the memory.
_UNSENT_MAX = 4 << 20

#: What a service may send once it has accepted the worker.
_ANSWERS = (frames.ROWS, frames.ERROR, frames.RETIRED, frames.ALIVE)

#: Polls in a row, each as long as ALIVE frames are apart, in which a service that is not hung would
#: have been heard. Counted, not timed: a machine that was suspended loses one poll.
_SILENT_POLLS = 6

#: Seconds without a row after which a block fails, with a message: a little less than the 600 s
#: after which ClickHouse gives up without one (`command_read_timeout`).
_ROW_SECONDS = 570.0


#: How often a block may be sent again because a service gave way: more than one query ever sees.
_MOVES = 10


class _ServiceLostError(Exception):
    """The connection broke before the block was answered."""


class _ServiceMovedError(Exception):
    """The service gave way to another before the block was answered."""


class Worker:
    """Serves blocks of one SQL function, one after another, until stdin ends.

    `source`, `answers` and `messages` are file descriptors: where blocks come from, where rows go,
    and where the message of a failed block goes.
    """

    def __init__(
        self, function: str, settings_path: str, source: int, answers: int, messages: int
    ) -> None:
        self._function = function
        self._settings_path = settings_path
        self._source = source
        self._answers = answers
        self._messages = messages
        self._service: socket.socket | None = None
        self._note = ""  # for the log of the next service

    def run(self) -> None:
        """Serve blocks until stdin ends."""
        data = os.read(self._source, _READ_SIZE)
        while data:
            block = _Block(data)
            self._serve(block)
            data = block.rest or os.read(self._source, _READ_SIZE)

    def _serve(self, block: _Block) -> None:
        error: str | None = None
        try:
            self._drop_stale_connection()
            losses = moves = 0
            while True:
                try:
                    error = self._exchange(block)
                    break
                except _ServiceLostError:
                    losses += 1
                except _ServiceMovedError:
                    moves += 1
                self._disconnect()
                if losses == 2 or moves > _MOVES or block.kept is None:
                    error = block.loss()
                    break
        except ServiceError as failure:
            error = str(failure)
        if error is None:
            return
        # What is left of the block must not reach the service as if it were a new one.
        self._disconnect()
        # Only a block that was read to its end leaves a worker that the next query can use.
        while not block.reader.done:
            data = os.read(self._source, _READ_SIZE)
            if not data:
                return
            block.take(data)
        _write_all(self._messages, error.encode() + b"\n")
        if block.owed:
            for piece in empty_rows(block.owed):
                _write_all(self._answers, piece)

    def _exchange(self, block: _Block) -> str | None:
        """Pass the block on and write the rows that come back; a message if the block failed."""
        if self._service is None:
            self._service = connect(self._settings_path, self._function, block.written, self._note)
            self._note = ""
        service = self._service
        received = frames.FrameReader(_ANSWERS)
        unsent = collections.deque([memoryview(bytes(block.kept or b""))])
        poll = select.poll()
        silent = 0
        while not block.answered:
            # Errors and hang-ups are reported whatever is asked for.
            poll.register(service, select.POLLIN | (select.POLLOUT if unsent else 0))
            if block.reader.done or sum(map(len, unsent)) >= _UNSENT_MAX:
                _unregister(poll, self._source)
            else:
                poll.register(self._source, select.POLLIN)
            ready = poll.poll(frames.ALIVE_SECONDS * 1000)
            silent = 0 if ready else silent + 1
            if silent >= _SILENT_POLLS:
                seconds = _SILENT_POLLS * frames.ALIVE_SECONDS
                self._note = f"the service before was silent for {seconds:.0f} s: killed"
                end_hung(service)
                raise _ServiceLostError
            block.check_patience()
            for descriptor, events in ready:
                if descriptor == self._source:
                    data = os.read(self._source, _READ_SIZE)
                    if not data:
                        raise SystemExit(0)  # the query was cancelled
                    unsent.append(memoryview(block.take(data)))
                    continue
                if events & select.POLLOUT:
                    _send(service, unsent)
                if events & ~select.POLLOUT:
                    message = self._receive(service, received, block)
                    if message is not None:
                        return message
        return None

    def _receive(
        self, service: socket.socket, received: frames.FrameReader, block: _Block
    ) -> str | None:
        try:
            data = service.recv(_READ_SIZE)
        except OSError as error:
            raise _ServiceLostError from error
        if not data:
            raise _ServiceLostError
        try:
            for kind, rows, payload in received.feed(data):
                if kind == frames.ERROR:
                    return payload.decode("utf-8", "replace")
                if kind == frames.RETIRED:
                    raise _ServiceMovedError
                if kind == frames.ROWS:
                    if not 0 < rows <= block.owed or not is_array_block(payload, rows):
                        raise ProtocolError(f"no answer of {rows} rows, {block.owed} are owed")
                    _write_all(self._answers, payload)
                    block.wrote(rows)
                    if block.answered:
                        break  # what else it says is not about this block
        except ProtocolError as error:
            raise ServiceError(f"the encoder service broke the protocol: {error}") from error
        return None

    def _drop_stale_connection(self) -> None:
        """Between blocks the service says nothing: readable means that it has gone."""
        if self._service is not None and select.select([self._service], [], [], 0)[0]:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._service is not None:
            self._service.close()
            self._service = None


class _Block:
    """One block: how much of it has been read, and how many rows have been written."""

    def __init__(self, data: bytes) -> None:
        self.reader = BlockReader(max_value=None)
        self.kept: bytearray | None = bytearray()
        self.written = 0
        self.rest = b""
        self._waiting_since = time.monotonic()
        self.take(data)

    @property
    def owed(self) -> int:
        return (self.reader.rows or 0) - self.written

    @property
    def answered(self) -> bool:
        return self.reader.done and self.owed == 0

    def take(self, data: bytes) -> bytes:
        """Note what was read; returns the part of it that belongs to this block."""
        self.rest = self.reader.feed(data)
        data = data[: len(data) - len(self.rest)]
        if self.kept is not None:
            self.kept += data
            if len(self.kept) > _KEEP_MAX:
                self.kept = None
        return data

    def wrote(self, rows: int) -> None:
        """Note that rows have been written."""
        self.written += rows
        self._waiting_since = time.monotonic()

    def check_patience(self) -> None:
        """Raise `ServiceError` if ClickHouse would soon stop waiting for rows."""
        if time.monotonic() - self._waiting_since > _ROW_SECONDS:
            raise ServiceError(
                f"the encoder service runs, and gave no row for {_ROW_SECONDS:.0f} s: it has more "
                "to do than it can; `clip-encoder status` shows how many rows wait; run fewer such "
                "queries at once, or with a smaller max_block_size"
            )

    def loss(self) -> str:
        if self.kept is None:
            return (
                f"the encoder service stopped while it worked on a block of more than "
                f"{_KEEP_MAX >> 20} MiB, too large to be sent again; "
                "run the query again, with a smaller max_block_size"
            )
        return (
            "the encoder service stopped twice while it worked on this block; "
            "its log says why, `clip-encoder status` shows where it is"
        )


def _send(service: socket.socket, unsent: collections.deque[memoryview]) -> None:
    while unsent:
        try:
            sent = service.send(unsent[0])
        except BlockingIOError:
            return
        except OSError:
            # It has gone, perhaps after an answer: what can still be received says which.
            unsent.clear()
            return
        if sent < len(unsent[0]):
            unsent[0] = unsent[0][sent:]
        else:
            unsent.popleft()


def _unregister(poll: select.poll, descriptor: int) -> None:
    try:
        poll.unregister(descriptor)
    except KeyError:
        pass


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main(script: str, settings_path: str, argv: list[str]) -> int:
    """Run a worker on this process's own stdin, stdout and stderr.

    `argv` holds the SQL function's name, as the function XML's `command` gives it.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # What the server had open when it started this process is none of its business.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # Whatever else may print in this process must not reach ClickHouse.
    answers, messages = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        if len(argv) != 1:
            raise ClipError(f"{script}: one argument is needed, the SQL function's name")
        Worker(argv[0], settings_path, 0, answers, messages).run()
    except ClipError as error:
        _write_all(messages, f"{error}\n".encode())
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # ClickHouse has closed the pipes: the query was cancelled
    return 0
