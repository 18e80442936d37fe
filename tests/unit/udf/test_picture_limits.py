from __future__ import annotations

import threading
import time

import pytest

from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.picture_limits import (
    PictureFile,
    PixelRoom,
    check_scans,
    check_tags,
    check_tiles,
)
from tests.unit.udf.bad_pictures.parts import LONG, SHORT, grey_tiff, picture, saved, tiff


def test_a_picture_s_file_is_one_that_ends() -> None:
    file = PictureFile(b"abc")
    assert [file.read(2), file.read(), file.read(1)] == [b"ab", b"c", b""]
    for _ in range(1_000_000 - 3):
        file.read(1)
    with pytest.raises(PictureError, match="too many pieces"):
        file.read(1)


def test_scans_are_counted_up_to_the_picture_s_end() -> None:
    data = saved(picture(), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    check_scans(data, start)
    scan = data[data.rindex(b"\xff\xda") : -2]
    check_scans(data[:-2] + scan * 80 + b"\xff\xd9", start)
    # Behind its end lie other pictures, or a film: cameras do that.
    check_scans(data + scan * 500, start)
    for between in (b"", b"\xff\xfe\0\4\xff\xd9", b"\xff\xd0", b"\xff\xff"):
        with pytest.raises(PictureError, match="more than 100 scans"):
            check_scans(data[:-2] + (between + scan) * 100 + b"\xff\xd9", start)


@pytest.mark.parametrize("prefix", [b"II*\0", b"MM\0*", b"II+\0"])
def test_a_directory_that_ends_early_is_not_refused_here(prefix: bytes) -> None:
    for length in range(40):
        check_tags(prefix + b"\x08" * length)
        check_tiles(prefix + b"\x08" * length, 100)


def test_tags_of_many_values() -> None:
    check_tags(tiff((274, SHORT, 1_000_000, bytes(2_000_000))))
    check_tags(tiff((37724, 7, 3_000_000, bytes(3_000_000))))
    # It cannot lie in the file: Pillow passes over it.
    check_tags(tiff((274, SHORT, 2**32 - 1, 8)))
    with pytest.raises(PictureError, match="tag 274 has 1000001 values"):
        check_tags(tiff((274, SHORT, 1_000_001, bytes(2_000_002))))


def test_tiles_larger_than_a_picture_may_be() -> None:
    check_tiles(grey_tiff((322, SHORT, 1, 256), (323, LONG, 1, 256)), 65536)
    with pytest.raises(PictureError, match="tiles have 256x257 pixels, more than 65536"):
        check_tiles(grey_tiff((322, SHORT, 1, 256), (323, LONG, 1, 257)), 65536)


class Decoders:
    """Threads that each take a place and keep it until told."""

    def __init__(self, room: PixelRoom) -> None:
        self._room = room
        self._leave: dict[int, threading.Event] = {}
        self.inside: list[int] = []
        self.threads: list[threading.Thread] = []

    def add(self, pixels: int) -> None:
        leave = threading.Event()
        self._leave[pixels] = leave

        def run() -> None:
            with self._room.place() as take:
                take(pixels)
                self.inside.append(pixels)
                leave.wait(60)
                self.inside.remove(pixels)

        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()

    def leave(self, pixels: int) -> None:
        self._leave[pixels].set()

    def wait_for(self, inside: list[int]) -> None:
        deadline = time.monotonic() + 60
        while sorted(self.inside) != sorted(inside):
            assert time.monotonic() < deadline, self.inside
            time.sleep(0.001)


def test_pictures_share_the_room_and_a_large_one_has_its_turn() -> None:
    room = PixelRoom(100)
    decoders = Decoders(room)
    decoders.add(60)
    decoders.wait_for([60])
    decoders.add(40)
    decoders.wait_for([60, 40])
    decoders.add(1000)  # more than there is: alone, then
    while len(room._turns) < 1:
        time.sleep(0.001)
    decoders.add(1)  # would fit when 40 leave, but has come later
    while len(room._turns) < 2:
        time.sleep(0.001)
    decoders.leave(40)
    decoders.wait_for([60])
    decoders.leave(60)
    decoders.wait_for([1000])
    decoders.leave(1000)
    decoders.wait_for([1])
    decoders.leave(1)
    for thread in decoders.threads:
        thread.join(60)
    assert room._free == 100


def test_room_is_free_again_after_an_error() -> None:
    room = PixelRoom(100)

    def fail() -> None:
        with room.place() as take:
            take(80)
            raise PictureError("x")

    for _ in range(3):
        with pytest.raises(PictureError):
            fail()
    with room.place():
        pass  # refused before it took any
    assert room._free == 100
