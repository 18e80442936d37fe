"""What happens to containers: stopped, killed, upgraded, and the functions taken out again."""

from __future__ import annotations

import pytest

from tests.docker.conftest import StartContainer
from tests.docker.containers import BIN, Container, docker, value, wait_until

ENCODE = "SELECT length(encode_text({text:String}))"


def pid_of_encoder(container: Container) -> int:
    report = container.encoder()
    assert report is not None
    return int(report["pid"])


def keep_a_row(container: Container) -> None:
    client = container.client()
    client.command(
        "CREATE TABLE kept (text String, embedding Array(Float32)) ENGINE = MergeTree ORDER BY text"
    )
    client.command("INSERT INTO kept SELECT 'a dog' AS text, encode_text(text)")


def assert_row_is_found(container: Container) -> None:
    sql = "SELECT count() FROM kept WHERE cosineDistance(embedding, encode_text('a dog')) < 0.001"
    assert value(container.client(), sql) == 1


def test_a_restart(start: StartContainer) -> None:
    container = start()
    keep_a_row(container)
    docker("restart", container.name)
    assert_row_is_found(container)


def test_a_stop_waits_for_nobody(start: StartContainer) -> None:
    container = start()
    assert value(container.client(), ENCODE, text="busy") == 128
    docker("stop", "--time", "60", container.name)
    assert container.inspect()["State"]["ExitCode"] in (0, 143)  # and not killed: 137


def test_the_encoder_is_killed(start: StartContainer) -> None:
    container = start()
    client = container.client()
    assert value(client, ENCODE, text="before") == 128
    before = pid_of_encoder(container)
    # The shell's own: an image need not have the command.
    container.run("sh", "-c", f"kill -KILL {before}")
    assert value(client, ENCODE, text="after") == 128
    assert pid_of_encoder(container) != before


def test_the_container_is_killed(start: StartContainer) -> None:
    """The socket and the lock of the dead encoder are still in the volume."""
    container = start()
    keep_a_row(container)
    docker("kill", container.name)
    docker("start", container.name)
    assert_row_is_found(container)


@pytest.fixture
def older_image(image: str) -> str:
    """The image as an older version would have made it: with another model, and other settings."""
    tag = "clickhouse-clip-test:older"
    package = "/opt/clickhouse-clip/lib/python3*/site-packages/clickhouse_clip"
    settings = "/etc/clickhouse-server/clickhouse-clip/settings.json"
    name = f"{tag.replace(':', '-')}-build"
    docker("rm", "--force", name)
    docker(
        *("run", f"--name={name}", "--network=none", "--user=0", "--entrypoint=sh", image, "-ec"),
        f"sed -i 's/__version__ = .*/__version__ = \"0.0.1\"/' {package}/udf/__init__.py;"
        f"{BIN}/install-udfs --root / --image-root /tmp --no-warmup;"
        f"sed -i '/cache_texts/d' {settings}",
    )
    entrypoint = docker("inspect", "--format={{json .Config.Entrypoint}}", image).stdout.strip()
    docker("commit", f"--change=ENTRYPOINT {entrypoint}", "--change=USER 0", name, tag)
    docker("rm", name)
    return tag


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_upgrade_over_the_same_volume(start: StartContainer, older_image: str, end: str) -> None:
    older = start(of=older_image)
    keep_a_row(older)
    report = older.encoder()
    assert report is not None
    assert report["version"] == "0.0.1"
    docker(end, older.name)
    docker("rm", older.name)

    newer = start()
    assert_row_is_found(newer)
    report = newer.encoder()
    assert report is not None
    assert report["version"] != "0.0.1"


def test_uninstall(start: StartContainer) -> None:
    container = start("--init=false")
    client = container.client()
    keep_a_row(container)
    report = container.run(f"{BIN}/install-udfs", "--uninstall")
    assert "warning" not in report
    with pytest.raises(Exception, match="UNKNOWN_FUNCTION"):
        client.query("SELECT encode_text('gone')")
    assert container.encoder_files() == []
    docker("restart", container.name)
    assert value(container.client(), "SELECT count() FROM kept") == 1


def test_the_encoder_leaves_and_comes_back(start: StartContainer) -> None:
    container = start("--no-healthcheck")
    client = container.client()
    assert value(client, ENCODE, text="first") == 128
    container.run(f"{BIN}/clip-encoder", "stop")
    wait_until(lambda: container.encoder() is None, "the encoder leaves")
    assert value(client, ENCODE, text="second") == 128
