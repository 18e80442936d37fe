"""The functions on the server of compose.yaml: read-only, a volume, pictures in user files."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest
from clickhouse_connect.driver.client import Client

from tests.docker.conftest import ROOT
from tests.docker.containers import BIN, Container, docker, value, wait_until

pytest.importorskip("pytest_docker", reason="pip install 'clickhouse-clip[docker]'")

DIMENSIONS = 128  # of the demo's model

FUNCTIONS = [
    ("encode_text", "'a dog'"),
    ("encode_image", "'pictures/dog.webp'"),
    ("encode_image_bytes", "base64Decode({dog:String})"),
    ("encode_image_or_empty", "'pictures/dog.webp'"),
    ("encode_image_bytes_or_empty", "base64Decode({dog:String})"),
]

DOG = base64.b64encode((ROOT / "demo" / "pictures" / "dog.webp").read_bytes()).decode()


@pytest.fixture(scope="module")
def server(docker_services: object, docker_compose_project_name: str) -> Container:
    assert docker_services
    label = f"label=com.docker.compose.project={docker_compose_project_name}"
    return Container(docker("ps", "--quiet", "--filter", label).stdout.strip())


@pytest.fixture(scope="module")
def client(server: Container) -> Client:
    return server.client()


@pytest.mark.parametrize(("function", "argument"), FUNCTIONS)
def test_each_function(client: Client, function: str, argument: str) -> None:
    vector = value(client, f"SELECT {function}({argument})", dog=DOG)
    assert len(vector) == DIMENSIONS
    assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-3)


def test_a_picture_is_the_same_by_path_and_by_bytes(client: Client) -> None:
    sql = (
        "SELECT encode_image('pictures/dog.webp') = encode_image_bytes(base64Decode({dog:String}))"
    )
    assert value(client, sql, dog=DOG) == 1


def test_a_table_is_filled_and_searched(client: Client) -> None:
    client.command(
        "CREATE TABLE pictures (name String, embedding Array(Float32)) "
        "ENGINE = MergeTree ORDER BY name"
    )
    client.command(
        "INSERT INTO pictures SELECT _file, encode_image('pictures/' || _file) "
        "FROM file('pictures/*.webp', One) WHERE _file < 'e' ORDER BY _file"
    )
    assert value(client, "SELECT count() FROM pictures") == sum(
        path.name < "e" for path in (ROOT / "demo" / "pictures").glob("*.webp")
    )
    search = (
        "SELECT name FROM pictures ORDER BY cosineDistance(embedding, encode_text({words:String})) "
        "LIMIT 3"
    )
    found = [row[0] for row in client.query(search, parameters={"words": "dog"}).result_rows]
    assert "dog.webp" in found


def test_rows_that_the_driver_inserts(client: Client) -> None:
    client.command(
        "CREATE TABLE captions (caption String, embedding Array(Float32) "
        "DEFAULT encode_text(caption)) ENGINE = MergeTree ORDER BY caption"
    )
    captions = [f"caption {number}" for number in range(300)]
    client.insert("captions", [[caption] for caption in captions], column_names=["caption"])
    assert value(client, "SELECT uniqExact(embedding) FROM captions") == 300
    # Another batch may round otherwise.
    farthest = "SELECT max(cosineDistance(embedding, encode_text(caption))) FROM captions"
    assert value(client, farthest) < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("encode_image('pictures/nowhere.webp')", "no such file"),
        ("encode_image('/etc/passwd')", "outside the folders"),
        ("encode_image_bytes('no picture')", "row 1 of 1"),
    ],
)
def test_an_error_says_what_is_wrong_and_the_next_query_works(
    client: Client, call: str, message: str
) -> None:
    with pytest.raises(Exception, match=message):
        client.query(f"SELECT {call}")
    assert value(client, "SELECT length(encode_image('pictures/dog.webp'))") == DIMENSIONS
    name, _, argument = call.partition("(")
    assert value(client, f"SELECT {name}_or_empty({argument}") == []


def test_many_clients_at_once(server: Container, client: Client) -> None:
    texts = [f"text {number} of many" for number in range(64)]

    def encode(text: str) -> list[float]:
        with server.client() as own:
            vector: list[float] = value(own, "SELECT encode_text({text:String})", text=text)
            return vector

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(encode, texts))
    for text, vector in zip(texts, found, strict=True):
        assert value(client, "SELECT encode_text({text:String})", text=text) == pytest.approx(
            vector, abs=2e-2
        )
    assert len({tuple(vector) for vector in found}) == len(texts)


def test_the_installer_finds_nothing_wrong(server: Container) -> None:
    report = server.run(f"{BIN}/install-udfs", "--check")
    assert report.count("128 dimensions, norm 1.000") == 5
    assert "error" not in report


def test_docker_says_that_it_is_healthy(server: Container) -> None:
    wait_until(
        lambda: server.inspect()["State"]["Health"]["Status"] == "healthy", "the health check"
    )
    assert "128 dimensions" in server.inspect()["State"]["Health"]["Log"][-1]["Output"]


def test_only_data_can_be_written(server: Container) -> None:
    assert server.run("id", "--user").strip() == "101"
    server.run("touch", "/var/lib/clickhouse/user_files/mine")
    with pytest.raises(AssertionError, match="Read-only file system"):
        server.run("touch", "/opt/clickhouse-clip/bundle/mine", user="root")
