"""One worker's connection: blocks in, answers out, in order."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque

import numpy as np

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.catalog import SqlFunction
from clickhouse_clip.udf.encoder import Encoder
from clickhouse_clip.udf.errors import ClipError, ProtocolError
from clickhouse_clip.udf.native import BlockReader, Oversized, array_block_header
from clickhouse_clip.udf.windows import PictureWindow, TextWindow, Vectors

_log = logging.getLogger(__name__)

_READ_SIZE = 1 << 18

#: Texts in a window: enough that a batch finds its like in length, few enough to answer often.
_TEXT_ROWS = 4096

#: Pictures in a window: some batches of the image tower.
_PICTURE_ROWS = 32

#: A window also ends here, so that large pictures given as bytes do not pile up.
_WINDOW_BYTES = 64 << 20

#: Windows under way at once: one being encoded, one being prepared, one waiting.
_IN_FLIGHT = 3

#: Longer texts are refused: the service has to hold them whole, and a model reads a page at most.
_TEXT_MAX = 16 << 20

#: Of a path that is shown in an error.
_SHOWN = 200


class _RowError(Exception):
    """A row that fails its query."""


class _ReplacedError(Exception):
    """The weights that embeddings came from are no more those that were loaded."""


class Session:
    """Answers one worker's blocks until it leaves. `idle` is true between blocks.

    `fail` and `say_alive` may be called from other threads.
    """

    def __init__(
        self, connection: socket.socket, function: SqlFunction, encoder: Encoder, skip: int
    ) -> None:
        self._connection = connection
        self._function = function
        self._encoder = encoder
        self._skip = skip
        self._sending = threading.Lock()
        self.idle = True
        self.retiring = False

    def run(self) -> None:
        """Answer blocks until the worker leaves, or until the service retires."""
        while not self.retiring and (data := self._connection.recv(_READ_SIZE)):
            if self.retiring:
                break
            self.idle = False
            if not self._answer_block(data):
                return
            self.idle = True
            self._skip = 0
        if self.retiring:
            self._tell(frames.RETIRED)

    def _answer_block(self, data: bytes) -> bool:
        """Answer one block that begins with `data`; False if the connection is of no use after."""
        try:
            tower = self._function.tower
            with self._encoder.tasks.task(f"loading the {tower} tower", (self,)):
                self._encoder.load(tower)
            block = _Block(self._function, self._encoder, self._skip)
            block.take(data)
            while not block.answered:
                with self._encoder.tasks.task("preparing a block", (self,)):
                    block.start_windows()
                if block.read or block.full:
                    self._send(*block.next_result())
                    continue
                while block.windows and block.windows[0].done:
                    self._send(*block.next_result())
                data = self._connection.recv(_READ_SIZE)
                if not data:
                    return False
                block.take(data)
        except (_RowError, ClipError) as error:
            self._fail(f"{self._function.name}: {error}")
            return False
        except OSError:
            return False  # the worker has gone
        except _ReplacedError:
            _log.warning("%s: weights have changed: a block is given up", self._function.name)
            self._tell(frames.RETIRED)
            return False
        except Exception as error:
            _log.exception("%s: a block failed", self._function.name)
            self._fail(f"{self._function.name}: {type(error).__name__}: {error}; see the log")
            return False
        return True

    def _send(self, rows: int, vectors: Vectors, skipped: dict[int, str]) -> None:
        if self._encoder.sources[self._function.tower].changed():
            raise _ReplacedError
        with self._sending:
            self._connection.sendall(_header(rows, vectors, skipped))
            if skipped:
                vectors = np.delete(vectors, list(skipped), axis=0)
            if len(vectors):
                self._connection.sendall(vectors.data.cast("B"))

    def fail(self, error: Exception) -> None:
        """Fail the block under way, whose own thread hangs."""
        self._fail(f"{self._function.name}: {error}")

    def _fail(self, message: str) -> None:
        self._encoder.counters.add(failed_blocks=1)
        _log.info("query failed: %s", message)
        self._tell(frames.ERROR, message)

    def _tell(self, kind: int, message: str = "") -> None:
        try:
            with self._sending:
                self._connection.sendall(frames.encode(kind, 0, message.encode()))
        except OSError:
            pass  # the worker has gone

    def say_alive(self) -> None:
        """Tell a worker that waits for an answer that it is being worked on."""
        # While something is being sent, that says it. So small a frame is sent whole or not at all.
        if not self.idle and self._sending.acquire(blocking=False):
            try:
                self._connection.send(frames.encode(frames.ALIVE), socket.MSG_DONTWAIT)
            except OSError:
                pass  # full, or gone
            finally:
                self._sending.release()


class _Block:
    """One block being answered: rows that came, windows under way."""

    def __init__(self, function: SqlFunction, encoder: Encoder, skip: int) -> None:
        self._function = function
        self._encoder = encoder
        limit = _TEXT_MAX if function.source == "text" else encoder.settings.max_bytes
        self._reader = BlockReader(max_value=limit)
        self._rows: list[bytes | Oversized] = []
        self._skip = skip  # rows that a former service has answered
        self._first = 0  # of the oldest window, in the block
        self._shown: deque[list[bytes | Oversized]] = deque()
        self.windows: deque[TextWindow | PictureWindow] = deque()

    @property
    def read(self) -> bool:
        """Whether the block's last byte has been read."""
        return self._reader.done

    @property
    def full(self) -> bool:
        """Whether as many windows are under way as may be."""
        return len(self.windows) >= _IN_FLIGHT

    @property
    def answered(self) -> bool:
        """Whether nothing is left to be done."""
        return self.read and not self._rows and not self.windows

    def take(self, data: bytes) -> None:
        """Take the next bytes of the block."""
        reader = self._reader
        if reader.feed(data):
            raise ProtocolError("more bytes than the block has")
        self._rows += reader.take()
        if self._skip:
            skipped = min(self._skip, len(self._rows))
            del self._rows[:skipped]
            self._skip -= skipped
            self._first += skipped
        if reader.done and reader.refused:
            raise ProtocolError(f"the argument must be a String, {reader.refused}")

    def start_windows(self) -> None:
        """Begin to encode what has come, as far as windows may be under way."""
        while not self.full and (rows := self._next_window()):
            self.windows.append(self._encoder.start(self._function, rows, self._reader.rows or 0))
            self._shown.append(rows)

    def _next_window(self) -> list[bytes | Oversized]:
        rows = self._rows
        most = _TEXT_ROWS if self._function.source == "text" else _PICTURE_ROWS
        size = 0
        for count, row in enumerate(rows[:most], 1):
            size += len(row) if isinstance(row, bytes) else 0
            if count == most or size >= _WINDOW_BYTES:
                break
        else:
            if not (self._reader.done and rows):
                return []
            count = len(rows)
        window = rows[:count]
        del rows[:count]
        return window

    def next_result(self) -> tuple[int, Vectors, dict[int, str]]:
        """Rows, embeddings and rows without one, of the oldest window. Waits for them."""
        window, shown = self.windows.popleft(), self._shown.popleft()
        vectors, skipped = window.result()
        first, self._first = self._first, self._first + window.rows
        self._encoder.counters.add(bad_pictures=len(skipped))
        for row in sorted(skipped):
            where = f"row {first + row + 1} of {self._reader.rows}{self._describe(shown[row])}"
            if not self._function.skips_bad_rows:
                raise _RowError(f"{where}: {skipped[row]}")
            _log.warning("%s: %s: %s", self._function.name, where, skipped[row])
        return window.rows, vectors, skipped

    def _describe(self, value: bytes | Oversized) -> str:
        if self._function.source != "path" or isinstance(value, Oversized):
            return ""
        text = value.decode("utf-8", "replace")
        return f", {text[:_SHOWN]!r}" + ("…" if len(text) > _SHOWN else "")


def _header(rows: int, vectors: Vectors, skipped: dict[int, str]) -> bytes:
    """The frame up to the floats: frame header, block header, offsets."""
    lengths = np.full(rows, vectors.shape[1], dtype="<u8")
    lengths[list(skipped)] = 0
    block = array_block_header(rows) + np.cumsum(lengths, dtype="<u8").tobytes()
    floats = (rows - len(skipped)) * vectors.shape[1] * 4
    return frames.HEADER.pack(frames.ROWS, rows, len(block) + floats) + block
