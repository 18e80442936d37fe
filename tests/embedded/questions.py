"""Random queries over all five functions, each with a check that every answer is its row's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.embedded.conftest import pixels
from tests.embedded.engine import Rows
from tests.toy import image_vector, text_vector

PICTURES = [image_vector(pixels(number)) for number in range(100)]


@dataclass(frozen=True)
class Question:
    """A query; `error` is what its message holds if it must fail, `rows` how many it has."""

    kind: str
    sql: str
    rows: int
    check: Callable[[Rows], bool]
    error: str = ""


class Questions:
    """Makes queries of one client. `name` is a lower-case word that no other client has.

    Texts are each query's own, so that no cache answers, and nothing but its rows can be right.
    """

    def __init__(self, name: str, seed: int, user_files: Path) -> None:
        self.random = random.Random(seed)
        self._name = name
        self._user_files = user_files
        self._asked = 0

    def prefix(self) -> str:
        """The beginning of texts that nobody else asks for."""
        self._asked += 1
        return f"{self._name}{self._asked}y"

    def texts(self) -> Question:
        prefix = self.prefix()
        rows = self.random.choice([1, 10, 300, 5000, 20_000])
        threads = self.random.choice([1, 4])
        block = max(self.random.choice([100, 3000, 65_000]), rows // 20)
        return Question(
            "texts",
            f"SELECT number, encode_text('{prefix}' || toString(number)) FROM numbers_mt({rows}) "
            f"SETTINGS max_threads = {threads}, max_block_size = {block}",
            rows,
            lambda found: (
                numbers(found) == list(range(rows))
                and right(
                    found[:: 1 + rows // 300], lambda n: text_vector(b"%s%d" % (prefix.encode(), n))
                )
            ),
        )

    def constant(self) -> Question:
        text = self.prefix()
        return Question(
            "constant",
            f"SELECT encode_text('{text}')",
            1,
            lambda found: close(found[0][0], text_vector(text.encode())),
        )

    def pictures(self) -> Question:
        rows = self.random.choice([1, 20, 100])
        start = self.random.randrange(100)
        return Question(
            "pictures",
            f"SELECT number, encode_image(toString((number + {start}) % 100) || '.png') "
            f"FROM numbers({rows})",
            rows,
            lambda found: (
                numbers(found) == list(range(rows))
                and right(found, lambda n: PICTURES[(n + start) % 100])
            ),
        )

    def picture_bytes(self) -> Question:
        function = self.random.choice(["encode_image_bytes", "encode_image_bytes_or_empty"])
        return Question(
            "picture bytes",
            f"SELECT toUInt8(splitByChar('.', _file)[1]), {function}(raw) "
            f"FROM file('{self._user_files}/?.png', 'RawBLOB', 'raw String')",
            10,
            lambda found: numbers(found) == list(range(10)) and right(found, lambda n: PICTURES[n]),
        )

    def both(self) -> Question:
        prefix = self.prefix()
        return Question(
            "texts and pictures",
            f"SELECT number, encode_text('{prefix}' || toString(number)), "
            "encode_image(toString(number) || '.png') FROM numbers(50)",
            50,
            lambda found: (
                numbers(found) == list(range(50))
                and right(found, lambda n: text_vector(b"%s%d" % (prefix.encode(), n)))
                and right([[row[0], row[2]] for row in found], lambda n: PICTURES[n])
            ),
        )

    def bad_picture(self) -> Question:
        bad = self.random.randrange(60)
        return Question(
            "a bad picture",
            f"SELECT encode_image(if(number = {bad}, 'broken.png', toString(number) || '.png')) "
            "FROM numbers(60)",
            60,
            lambda _: False,
            error="broken.png",
        )

    def skipped(self) -> Question:
        bad = self.random.randrange(60)
        return Question(
            "a bad picture, skipped",
            "SELECT number, encode_image_or_empty("
            f"if(number = {bad}, 'broken.png', toString(number) || '.png')) FROM numbers(60)",
            60,
            lambda found: (
                numbers(found) == list(range(60))
                and found[bad][1] == []
                and right(found[:bad] + found[bad + 1 :], lambda n: PICTURES[n])
            ),
        )

    def any(self) -> Question:
        """One of all of these."""
        kinds = {
            self.texts: 12, self.constant: 8, self.pictures: 8, self.picture_bytes: 4,
            self.both: 4, self.bad_picture: 4, self.skipped: 4,
        }  # fmt: skip
        return self.random.choices(list(kinds), list(kinds.values()))[0]()


def numbers(found: Rows) -> list[int]:
    return sorted(int(row[0]) for row in found)


def right(found: Rows, expected: Callable[[int], Any]) -> bool:
    return all(close(row[1], expected(int(row[0]))) for row in found)


def close(vector: Any, expected: Any) -> bool:
    return len(vector) == len(expected) and np.allclose(vector, expected, atol=2e-6)
