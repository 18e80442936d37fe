"""load-laion on the real engine: every row right, whatever the files are like, or none."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from clickhouse_clip.sql.statements import read_statements
from tests.embedded.conftest import Server
from tests.embedded.engine import Engine, QueryError
from tests.embedded.laion import Shard

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="loads with this environment's own engine"
)

#: Row groups that end before, at and after a block's end, many of them, and one.
SHARDS = (
    Shard(0, 20_000, row_group=20_000),
    Shard(1, 20_001, row_group=997),
    Shard(2, 8_193, row_group=64),
    Shard(3, 1, row_group=1),
    Shard(7, 24_576, row_group=8_192),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laion") / "it's here"
    for shard in SHARDS:
        shard.write(folder)
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Server:
    """A server without tables; loading needs no functions."""
    server = Server(tmp_path / "server")
    server.user_files.mkdir(parents=True)
    server.config_dir.mkdir()
    (server.config_dir / "config.xml").write_text(
        f"<clickhouse><path>{server.data_dir}/</path>"
        f"<user_files_path>{server.user_files}/</user_files_path></clickhouse>"
    )
    return server


def command(server: Server, shards: str, source: Path | str, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "clickhouse_clip.sql.load_cli"),
        *("--shards", shards, "--from", str(source), *options),
        *("--dsn", f"chdb://{server.data_dir}"),
        *("--config-file", str(server.config_dir / "config.xml")),
    ]


def load(
    server: Server, shards: str, source: Path | str, *options: str
) -> subprocess.CompletedProcess[str]:
    arguments = command(server, shards, source, *options)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


class Reading:
    """The server's engine, between two loads."""

    def __init__(self, server: Server) -> None:
        self.engine = server.start_engine()

    def __enter__(self) -> Engine:
        return self.engine

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def assert_holds(engine: Engine, *shards: Shard, table: str = "laion") -> None:
    """The table holds these shards, every value of every row, and no other."""
    rows = engine.query(f"SELECT id, url, caption, NSFW, similarity FROM {table} ORDER BY id")
    assert rows == [row for shard in shards for row in shard.expected()]
    wrong = engine.query(
        f"""SELECT
            countIf(image_embedding != vector),
            countIf(text_embedding != arrayMap(x -> -x, vector))
        FROM (SELECT *, arrayConcat(
            [intDiv(id, 10000000) + 1, intDiv(id % 10000000, 2048), id % 10000000 % 2048],
            arrayWithConstant(13, 0))::Array(Float32) AS vector FROM {table})"""
    )
    assert wrong == [[0, 0]]
    names = engine.query("SELECT name FROM system.tables WHERE name LIKE '%loading%'")
    assert names == []


def test_every_row_is_right_and_nothing_is_loaded_twice(fresh: Server, folder: Path) -> None:
    first = load(fresh, "0-2", folder)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == "All 3 shards are in laion."
    assert "shard 1: 20,001 rows in" in first.stdout
    assert "; 2 of 3, 40,001 rows in all" in first.stdout
    second = load(fresh, "0-3,7", folder)
    assert second.returncode == 0
    assert "shard 1: 20,001 rows, loaded before" in second.stdout
    assert "shard 7: 24,576 rows in" in second.stdout
    with Reading(fresh) as engine:
        assert_holds(engine, *SHARDS)
        # What somebody dropped is not there, whatever the journal says.
        engine.query("ALTER TABLE laion DROP PARTITION 2")
        # What somebody deleted of a shard stays deleted.
        engine.query("DELETE FROM laion WHERE id = 10000005")
    third = load(fresh, "0-3,7", folder)
    assert third.returncode == 0
    assert third.stdout.count("loaded before") == 4
    with Reading(fresh) as engine:
        assert engine.value("SELECT count() FROM laion") == sum(s.rows for s in SHARDS) - 1


def test_from_a_web_server(fresh: Server, folder: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = f"http://127.0.0.1:{server.server_port}/it%27s%20here/"
        result = load(fresh, "1,2,5", source, "--table", "pictures")
    finally:
        server.shutdown()
        server.server_close()
    assert result.returncode == 1
    assert "shard 5: " in result.stderr
    assert "metadata_5.parquet" in result.stderr
    with Reading(fresh) as engine:
        assert_holds(engine, *SHARDS[1:3], table="pictures")


def test_lean_table(fresh: Server, folder: Path) -> None:
    with Reading(fresh) as engine:
        for statement in read_statements("schema_lean.sql"):
            engine.query(statement, table="lean", dimensions=16)
    result = load(fresh, "1", folder, "--table", "lean")
    assert (result.returncode, result.stderr) == (0, "")
    with Reading(fresh) as engine:
        found = engine.query("SELECT id, url, caption, NSFW, similarity FROM lean ORDER BY id")
        assert found == SHARDS[1].expected()
        types = engine.query("SELECT DISTINCT toTypeName(image_embedding) FROM lean")
        assert types == [["Array(BFloat16)"]]


def spoil(folder: Path) -> dict[int, str]:
    """Write shards 0 to 12, all damaged but 0 and 12; returns what must be said of each."""
    for number in range(13):
        Shard(number, 3_000, row_group=500).write(folder)
    images = {n: folder / f"img_emb_{n}.npy" for n in range(13)}
    texts = {n: folder / f"text_emb_{n}.npy" for n in range(13)}
    metadata = {n: folder / f"metadata_{n}.parquet" for n in range(13)}

    data = images[1].read_bytes()
    images[1].write_bytes(data[:-1])
    np.save(texts[2], np.zeros((2_999, 16), np.float16))
    np.save(images[3], np.zeros((3_001, 16), np.float16))
    np.save(texts[4], np.zeros((3_000, 16), np.int32))
    np.save(images[5], np.zeros((3_000, 17), np.float16))
    np.save(texts[6], np.zeros((3_000, 15), np.float16))
    data = metadata[7].read_bytes()
    metadata[7].write_bytes(data[: len(data) // 2])
    images[8].unlink()
    metadata[9].unlink()
    np.save(images[10], np.asfortranarray(np.ones((3_000, 16), np.float16)))
    data = metadata[11].read_bytes()
    metadata[11].write_bytes(data.replace(b"caption", b"captain"))
    return {
        1: "img_emb_1.npy: Npy shape claims 96000 bytes of data, but only 95999",
        2: "metadata_2.parquet has 3000, img_emb_2.npy 3000, text_emb_2.npy 2999",
        3: "metadata_3.parquet has 3000, img_emb_3.npy 3001, text_emb_3.npy 3000",
        4: "text_emb_4.npy: Cannot insert Numpy value with type Int32",
        5: "img_emb_5.npy: its vectors are not as long as the table's",
        6: "text_emb_6.npy: its vectors are not as long as the table's",
        7: "metadata_7.parquet: Not a Parquet file",
        8: "img_emb_8.npy doesn't exist",
        9: "metadata_9.parquet doesn't exist",
        10: "img_emb_10.npy: Fortran order is not supported",
        11: "metadata_11.parquet: ",
    }


def test_damaged_shards_are_named_and_the_others_go_on(fresh: Server, tmp_path: Path) -> None:
    said = spoil(tmp_path / "laion")
    result = load(fresh, "0-12", tmp_path / "laion")
    assert result.returncode == 1
    errors = result.stderr.splitlines()
    assert len(errors) == len(said) + 1
    for line, (number, words) in zip(errors, said.items(), strict=False):
        assert line.startswith(f"load-laion: shard {number}: ")
        assert words in line
    assert "11 of 13 shards failed: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11;" in errors[-1]
    with Reading(fresh) as engine:
        assert_holds(engine, Shard(0, 3_000), Shard(12, 3_000))
    for number in said:
        Shard(number, 3_000).write(tmp_path / "laion")
    assert load(fresh, "0-12", tmp_path / "laion").returncode == 0
    with Reading(fresh) as engine:
        assert_holds(engine, *(Shard(number, 3_000) for number in range(13)))


def test_killed_in_the_middle(fresh: Server, tmp_path: Path) -> None:
    shards = [Shard(number, 20_000) for number in range(3)]
    for shard in shards:
        shard.write(tmp_path / "laion")
    for _ in range(2):
        process = subprocess.Popen(
            command(fresh, "0-2", tmp_path / "laion"), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        # The next shard is in the middle when this one's line comes.
        for line in process.stdout:
            if "rows in" in line:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        process.stdout.close()
        with Reading(fresh) as engine:
            whole = engine.query("SELECT intDiv(id, 10000000) AS s, count() FROM laion GROUP BY s")
            assert {rows for _, rows in whole} == {20_000}
    assert load(fresh, "0-2", tmp_path / "laion").returncode == 0
    with Reading(fresh) as engine:
        assert_holds(engine, *shards)


def test_wrongly_paired_rows_are_refused(fresh: Server, folder: Path) -> None:
    """Without its settings, the statement that loads would pair rows as they come."""
    statements = read_statements("load_laion.sql")
    insert = next(text for text in statements if "PASTE JOIN" in text)
    assert "input_format_parquet_preserve_order = 1" in insert
    assert "max_threads = 1" in insert
    with Reading(fresh) as engine:
        for statement in read_statements("schema.sql"):
            engine.query(statement, table="laion_loading", dimensions=16)
        with pytest.raises(QueryError, match="paired wrongly"):
            engine.query(
                insert.partition("SETTINGS")[0] + "SETTINGS max_threads = 8, max_block_size = 100",
                folder=str(folder),
                shard=1,
            )
        assert engine.value("SELECT count() FROM laion_loading") == 0


def test_a_table_of_another_make_is_refused(fresh: Server, folder: Path) -> None:
    with Reading(fresh) as engine:
        engine.query("CREATE TABLE laion (id Int64) ENGINE = MergeTree ORDER BY id")
    result = load(fresh, "0", folder)
    assert result.returncode == 1
    assert "not partitioned by intDiv(id, 10000000)" in result.stderr
