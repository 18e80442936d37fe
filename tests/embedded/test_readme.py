"""The README's SQL runs, and its tables say what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from clickhouse_clip.udf.catalog import FUNCTIONS
from clickhouse_clip.udf.settings import Settings
from tests.embedded.conftest import Server, save_picture, skip_without_vector_index
from tests.embedded.engine import Engine
from tests.toy import DIM

README = (Path(__file__).parents[2] / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def statements(text: str) -> list[str]:
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    return [part.strip() for block in blocks for part in block.split(";") if part.strip()]


def test_the_sql_of_the_readme_runs(server: Server, engine: Engine) -> None:
    skip_without_vector_index(engine)
    for number in range(5):
        save_picture(server.user_files / f"{number}.jpg", number)
    for sql in statements(section("Functions")):
        engine.query(sql.replace("512", str(DIM)))
    assert engine.value("SELECT count() FROM pictures") == 5
    (search,) = statements(README.split("\n## ")[0])
    assert len(engine.query(search)) == 5


def test_every_function_is_described() -> None:
    described = re.findall(r"^\| `(\w+)\((\w+)\)` \|", section("Functions"), re.MULTILINE)
    assert described == [(function.name, function.argument) for function in FUNCTIONS]


def test_every_setting_is_described_with_its_default() -> None:
    rows = re.findall(r"^\| (`.+?) \| (.*?) \|", section("Settings"), re.MULTILINE)
    described = {
        name: default.strip("`").replace(",", "")
        for names, default in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert described.keys() == {field.name for field in fields(Settings)}
    for field in fields(Settings):
        if isinstance(field.default, (bool, int, float, str)):
            expected = str(field.default).removesuffix(".0")
            assert described[field.name].lower() == expected.lower(), field.name
