"""Bad pictures among good ones, in one block: each row gets what is its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.embedded.conftest import Server, assert_vectors, pixels, save_picture
from tests.embedded.engine import Engine, QueryError
from tests.toy import image_vector
from tests.unit.udf.bad_pictures.corpus import MAX_PIXELS, Case, corpus

#: Of each kind of bad picture, as many as this.
_OF_A_KIND = 60

#: Larger ones would only take time here; alone, all of them are tried in the unit tests.
_MAX_BYTES = 100_000

GOOD = 40

#: What a path can lead to, beside a file of bad bytes.
ODD = ("pipe", "socket", "folder", "device", "dangling", "outside", "circle", "unreadable")


@cache
def bad_cases() -> list[Case]:
    taken: dict[str, list[Case]] = {}
    for case in corpus():
        if case.expected == "error" and len(case.data) < _MAX_BYTES:
            taken.setdefault(case.kind, []).append(case)
    return [case for cases in taken.values() for case in cases[:: len(cases) // _OF_A_KIND + 1]]


@pytest.fixture(scope="module")
def folder(server: Server) -> Iterator[Path]:
    """Good pictures as `N.png`, bad ones as `bad-N.jpg`, and in `odd` what is no file at all."""
    settings = replace(server.settings, max_pixels=MAX_PIXELS)
    server.settings_file.write_text(settings.to_json())
    folder = server.user_files / "mixed"
    odd = folder / "odd"
    odd.mkdir(parents=True)
    for number in range(GOOD):
        save_picture(folder / f"{number}.png", number)
    for number, case in enumerate(bad_cases()):
        (folder / f"bad-{number}.jpg").write_bytes(case.data)
    os.mkfifo(odd / "pipe")
    (odd / "folder").mkdir()
    (odd / "device").symlink_to("/dev/zero")
    (odd / "dangling").symlink_to("nothing")
    (odd / "circle").symlink_to("circle")
    save_picture(server.root / "there.png", 1)
    (odd / "outside").symlink_to(server.root / "there.png")
    (odd / "unreadable").write_bytes((folder / "1.png").read_bytes())
    (odd / "unreadable").chmod(0)
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(odd, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{directory}/socket")  # a short name for a long path
        os.close(directory)
        yield folder


def assert_own_vectors(found: list[tuple[int, list[float]]]) -> None:
    numbers = [number for number, _ in found]
    assert sorted(set(numbers)) == list(range(GOOD))
    assert_vectors(
        [vector for _, vector in found], [image_vector(pixels(number)) for number in numbers]
    )


@pytest.mark.usefixtures("folder")
def test_paths_in_one_block(engine: Engine) -> None:
    bad = len(bad_cases())
    assert bad >= 100
    odd = [f"odd/{name}" for name in ODD if name != "unreadable" or os.getuid() != 0]
    names = [f"{number}.png" for number in range(GOOD)] * 3
    names += [f"bad-{number}.jpg" for number in range(bad)] + odd + ["none", "../../config.xml"]
    # Sorted by a hash, so that good and bad ones alternate.
    found = engine.query(
        "SELECT name, encode_image_or_empty('mixed/' || name) FROM "
        f"(SELECT arrayJoin({names!r}) AS name ORDER BY cityHash64(name, rowNumberInAllBlocks()))"
    )
    assert sorted(name for name, _ in found) == sorted(names)
    empty = {name for name, vector in found if not vector}
    assert empty == {name for name in names if not name.endswith(".png")}
    assert_own_vectors([(int(name[:-4]), vector) for name, vector in found if name not in empty])


def test_bytes_in_one_block(engine: Engine, folder: Path) -> None:
    found = engine.query(
        "SELECT name, encode_image_bytes_or_empty(raw) FROM (SELECT _file AS name, raw "
        f"FROM file('{folder}/*.{{jpg,png}}', 'RawBLOB', 'raw String') ORDER BY cityHash64(name))"
    )
    assert len(found) == GOOD + len(bad_cases())
    assert {name for name, vector in found if not vector} == {
        f"bad-{number}.jpg" for number in range(len(bad_cases()))
    }
    assert_own_vectors([(int(name[:-4]), vector) for name, vector in found if vector])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("folder", "a folder"),
        ("device", "outside the folders"),
        ("outside", "outside the folders"),
        ("dangling", "no such file"),
        ("circle", "symbolic link"),
        ("none", "no such file"),
    ],
)
def test_the_strict_function_says_what_it_is(
    engine: Engine, folder: Path, name: str, reason: str
) -> None:
    assert folder.is_dir()
    with pytest.raises(QueryError, match=rf"row 1 of 1, 'mixed/odd/{name}': .*{reason}"):
        engine.query(f"SELECT encode_image('mixed/odd/{name}')")


@pytest.mark.usefixtures("folder")
def test_the_strict_functions_fail_at_every_bad_picture(engine: Engine) -> None:
    # Every tenth: each is a query of its own.
    for number in range(0, len(bad_cases()), 10):
        path = f"mixed/bad-{number}.jpg"
        with pytest.raises(QueryError, match=rf"encode_image: row 2 of 3, '{path}': ."):
            engine.query(
                f"SELECT encode_image(arrayJoin(['mixed/1.png', '{path}', 'mixed/2.png']))"
            )
    assert_vectors(engine.value("SELECT encode_image('mixed/3.png')"), image_vector(pixels(3)))


def test_the_extension_of_a_name_says_nothing(engine: Engine, folder: Path) -> None:
    for name in ("picture.txt", "picture.svg", "picture", "picture.jpg"):
        (folder / name).write_bytes((folder / "5.png").read_bytes())
        found = engine.value(f"SELECT encode_image('mixed/{name}')")
        (folder / name).unlink()
        assert_vectors(found, image_vector(pixels(5)))


def test_files_that_come_and_go_while_they_are_read(engine: Engine, folder: Path) -> None:
    """Each row is its own picture or `[]`; no row is another's."""
    moving, aside = folder / "moving.png", folder / "aside"
    save_picture(moving, 7)
    answer = engine.start(
        "SELECT number % 2, encode_image_or_empty(if(number % 2, 'mixed/moving.png', "
        "'mixed/8.png')) FROM numbers(6000)"
    )
    swaps = 0
    while not answer.done():
        moving.rename(aside)
        aside.rename(moving)
        swaps += 1
    found = answer.result(300)
    moving.unlink()
    assert swaps > 100
    assert len(found) == 6000
    moved = [vector for which, vector in found if which]
    assert_vectors([v for which, v in found if not which][::50], [image_vector(pixels(8))] * 60)
    for vector in {tuple(vector) for vector in moved if vector}:
        assert_vectors(vector, image_vector(pixels(7)))
