"""What a SQL user can and cannot do; docs/security.md names these tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.udf.settings import Settings
from tests.embedded.conftest import Server, assert_vectors, pixels, save_picture
from tests.embedded.engine import Engine, QueryError
from tests.processes import wait_for_end
from tests.toy import image_vector, text_vector


@pytest.fixture(scope="module")
def analysts(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Server]:
    """A server whose user has SELECT on everything, and nothing else."""
    server = Server(tmp_path_factory.mktemp("analysts"))
    server.install(bundle, "--precision", "fp32")
    config = server.config_dir / "config.xml"
    text = config.read_text()
    profile = "<profile>default</profile>"
    assert text.count(profile) == 1
    grants = "<grants><query>GRANT SELECT ON *.*</query></grants>"
    config.write_text(text.replace(profile, profile + grants))
    save_picture(server.user_files / "1.png", 1)
    yield server
    server.stop_encoder()


@pytest.fixture(scope="module")
def analyst(analysts: Server) -> Iterator[Engine]:
    engine = analysts.start_engine()
    yield engine
    engine.close()


def test_no_grant_is_needed_to_call_the_functions(analyst: Engine) -> None:
    """ClickHouse has no grants on functions: whoever may connect may call them."""
    assert_vectors(analyst.value("SELECT encode_text('dog')"), text_vector(b"dog"))
    # Not even to read a file: what is in the folders is as good as public to SQL users.
    with pytest.raises(QueryError, match=r"READ ON FILE|FILE ON"):
        analyst.query("SELECT count() FROM file('1.png', 'RawBLOB')")
    assert_vectors(analyst.value("SELECT encode_image('1.png')"), image_vector(pixels(1)))


@pytest.mark.parametrize(
    ("sql", "grant"),
    [
        ("CREATE FUNCTION mine AS x -> 1", "CREATE FUNCTION"),
        ("CREATE OR REPLACE FUNCTION encode_text AS x -> 1", "FUNCTION"),
        ("DROP FUNCTION encode_text", "DROP FUNCTION"),
        ("SYSTEM RELOAD FUNCTIONS", "SYSTEM RELOAD FUNCTION"),
        (
            "SELECT * FROM executable('encode_text.py encode_text', 'Native', 'a String')",
            "CREATE TEMPORARY TABLE",
        ),
    ],
)
def test_what_needs_a_grant(analyst: Engine, sql: str, grant: str) -> None:
    with pytest.raises(QueryError, match=rf"Not enough privileges.*{grant}"):
        analyst.query(sql)


@pytest.mark.parametrize(
    "sql", ["CREATE OR REPLACE FUNCTION encode_text AS x -> 1", "DROP FUNCTION encode_text"]
)
def test_no_sql_puts_another_function_in_the_place_of_ours(engine: Engine, sql: str) -> None:
    with pytest.raises(QueryError, match="encode_text"):
        engine.query(sql)
    assert_vectors(engine.value("SELECT encode_text('dog')"), text_vector(b"dog"))


def test_outside_of_the_folders_nothing_can_be_told(engine: Engine, server: Server) -> None:
    """Whether there is a file, of what kind or size, and where a link leads: one message."""
    save_picture(server.root / "there.png", 1)
    links = server.user_files / "links"
    links.mkdir()
    (links / "file").symlink_to(server.root / "there.png")
    (links / "nothing").symlink_to(server.root / "nothing.png")
    (links / "folder").symlink_to(server.root)
    paths = [
        *(server.root / "there.png", server.root / "nothing.png", server.root),
        *("links/file", "links/nothing", "links/folder", "links/folder/there.png"),
        *("links/folder/nothing.png", "../../config/config.xml", "../../config/nothing"),
        *("../metadata", "/etc/passwd", "/etc/nothing", "/root/.ssh/id_rsa", "/dev/zero"),
        *("/proc/self/environ", "/proc/1/root/etc/passwd", "/proc/self/fd/0", "/", ".."),
    ]
    messages = set()
    for path in paths:
        with pytest.raises(QueryError) as error:
            engine.query(f"SELECT encode_image('{path}')")
        _, _, message = str(error.value).partition(f"'{path}': ")
        messages.add(message.partition("image_roots")[0])
    assert len(messages) == 1
    assert messages.pop().startswith("the path is outside the folders that pictures may be read")
    found = engine.query(f"SELECT encode_image_or_empty(arrayJoin({[*map(str, paths)]!r}))")
    assert [row[0] for row in found] == [[]] * len(paths)


def test_an_error_is_one_line_whatever_the_path_holds(engine: Engine) -> None:
    with pytest.raises(QueryError) as error:
        engine.query(r"SELECT encode_image('x\nCode: 0. forged\r\0y')")
    assert r"'x\nCode: 0. forged\r\x00y': the path contains a NUL byte" in str(error.value)


def test_an_error_quotes_no_text_and_no_picture(engine: Engine) -> None:
    with pytest.raises(QueryError) as error:
        engine.query("SELECT encode_image_bytes(concat('GIF89a', 'sec', materialize('ret')))")
    message = str(error.value).partition("While")[0].partition("In scope")[0]
    assert "row 1 of 1" in message
    assert "secret" not in message


@contextmanager
def changed(server: Server, **values: Any) -> Iterator[None]:
    """The server with other settings of the encoder."""
    before = server.settings

    def use(settings: Settings) -> None:
        report = server.status()
        server.settings_file.write_text(settings.to_json())
        if report is not None:  # it notices within a second, and gives way
            wait_for_end(report["pid"])

    use(replace(before, **values))
    try:
        yield
    finally:
        use(before)


def test_without_folders_only_bytes_are_read(server: Server, engine: Engine) -> None:
    """`image_roots: []` leaves reading to ClickHouse, which asks for READ ON FILE, S3 or URL."""
    with changed(server, image_roots=()):
        with pytest.raises(QueryError, match="no folder is allowed"):
            engine.query("SELECT encode_image('1.png')")
        found = engine.value(f"SELECT encode_image_bytes({raw_of_1(server)})")
        assert_vectors(found, image_vector(pixels(1)))
    assert_vectors(engine.value("SELECT encode_image('1.png')"), image_vector(pixels(1)))


def test_the_limits_are_the_settings(server: Server, engine: Engine) -> None:
    size = (server.user_files / "1.png").stat().st_size
    for name, limit in (("max_pixels", 63), ("max_bytes", size - 1)):
        with changed(server, **{name: limit}):
            for argument in ("encode_image('1.png')", f"encode_image_bytes({raw_of_1(server)})"):
                with pytest.raises(QueryError, match=name):
                    engine.query(f"SELECT {argument}")


def raw_of_1(server: Server) -> str:
    return f"(SELECT raw FROM file('{server.user_files}/1.png', 'RawBLOB', 'raw String'))"
