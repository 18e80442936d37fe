"""What only a real server does, beyond the engine that it shares with the stand-in."""

from __future__ import annotations

import pytest

from tests.docker.conftest import StartContainer
from tests.docker.containers import BIN, PASSWORD, docker, value, wait_until

pytestmark = pytest.mark.usefixtures("real_server")


def test_the_model_is_loaded_when_the_server_starts(start: StartContainer) -> None:
    """By the warm-up, a startup script: nobody has asked, not even the health check."""
    container = start("--no-healthcheck")
    wait_until(lambda: container.encoder() is not None, "the warm-up starts the encoder")
    wait_until(
        lambda: (container.encoder() or {}).get("rows", {}).get("encode_text") == 1,
        "the warm-up encodes",
    )


def test_a_running_server_is_given_the_functions_and_loses_them(start: StartContainer) -> None:
    """By SYSTEM RELOAD CONFIG: it neither restarts nor was made with them."""
    container = start()
    client = container.client()
    container.run(f"{BIN}/install-udfs", "--uninstall")
    with pytest.raises(Exception, match="UNKNOWN_FUNCTION"):
        client.query("SELECT encode_text('gone')")
    report = container.run(f"{BIN}/install-udfs", "--bundle", "/opt/clickhouse-clip/bundle")
    assert report.count("128 dimensions, norm 1.000") == 5
    assert value(client, "SELECT length(encode_text('back'))") == 128


def test_the_servers_own_client(start: StartContainer) -> None:
    container = start()
    container.client()
    answer = container.run(
        *("clickhouse-client", "--password", PASSWORD),
        *("--query", "SELECT length(encode_text('a dog'))"),
    )
    assert answer.strip() == "128"


def test_a_drop_in_in_yaml(start: StartContainer) -> None:
    """Its own configuration in YAML is merged with ours."""
    container = start()
    container.client()
    container.run(
        "sh",
        "-c",
        "echo 'display_name: in yaml' > /etc/clickhouse-server/config.d/name.yaml",
        user="root",
    )
    docker("restart", container.name)
    assert value(container.client(), "SELECT length(encode_text('a dog'))") == 128
    answer = container.run(
        "clickhouse-client", "--password", PASSWORD, "--query", "SELECT displayName()"
    )
    assert answer.strip() == "in yaml"
