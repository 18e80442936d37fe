"""Dockerfiles and compose files, read and linted; these need no Docker engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clickhouse_clip.installer import config_tree
from tests.docker.conftest import DOCKERFILE, ROOT

DOCKER = ROOT / "docker"
COMPOSE_FILES = [DOCKER / "compose.yaml", DOCKER / "compose.cluster.yaml"]


def compose(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("dockerfile", [DOCKERFILE, DOCKER / "engine" / "Dockerfile"])
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install 'clickhouse-clip[docker]'")
    process = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "")


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("password", ["secret", ""])
def test_compose_takes_the_file(
    docker_compose_command: str, file: Path, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without a password it says so: nobody could connect, or everybody."""
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", password)
    process = subprocess.run(
        [*docker_compose_command.split(), "--file", file, "config"],
        capture_output=True,
        text=True,
        check=False,
    )
    if password:
        assert process.returncode == 0, process.stderr
    else:
        assert process.returncode != 0
        assert "of the user" in process.stderr


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_compose_builds_with_the_dockerfiles_arguments_and_defaults(file: Path) -> None:
    in_dockerfile = {
        name: default.strip('"')
        for name, default in re.findall(r"^ARG (\w+)=?(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    }
    (build,) = [
        service["build"] for service in compose(file)["services"].values() if "build" in service
    ]
    assert build["args"] == {
        name: f"${{{name}:-{default}}}" for name, default in in_dockerfile.items()
    }
    assert (file.parent / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)


def test_every_file_that_compose_mounts_is_there() -> None:
    for file in COMPOSE_FILES:
        for service in compose(file)["services"].values():
            for mount in service.get("volumes", ()):
                source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).partition(":")[0]
                if source.startswith("."):
                    assert (DOCKER / source).exists(), f"{file.name}: {source}"


def test_the_clusters_nodes_are_those_that_its_configuration_names() -> None:
    services = compose(DOCKER / "compose.cluster.yaml")["services"]
    nodes = {
        name: service["environment"]
        for name, service in services.items()
        if "SHARD" in service.get("environment", {})
    }
    assert all(environment["REPLICA"] == name for name, environment in nodes.items())
    assert services["schema"]["environment"]["NODES"].split() == list(nodes)
    assert set(services["schema"]["depends_on"]) == set(nodes)

    (servers,) = config_tree.read(DOCKER / "cluster" / "cluster.xml").all("remote_servers")
    shards = servers.children[0].all("shard")
    in_configuration = {
        replica.all("host")[0].text: str(number)
        for number, shard in enumerate(shards, start=1)
        for replica in shard.all("replica")
    }
    assert in_configuration == {name: environment["SHARD"] for name, environment in nodes.items()}
    assert len(shards) == 2
    assert len(nodes) == 4


def test_the_cluster_has_the_macros_that_its_tables_need() -> None:
    tree = config_tree.read(DOCKER / "cluster" / "cluster.xml")
    (macros,) = tree.all("macros")
    assert {macro.name for macro in macros.children} == {"cluster", "shard", "replica"}
    assert macros.all("cluster")[0].text == tree.all("remote_servers")[0].children[0].name
    environment = compose(DOCKER / "compose.cluster.yaml")["services"]["clickhouse-1-1"]
    wanted = re.findall('from_env="(.*?)"', (DOCKER / "cluster" / "cluster.xml").read_text())
    assert set(wanted) <= set(environment["environment"])


@pytest.mark.parametrize("file", sorted(DOCKER.rglob("*.xml")), ids=lambda file: file.name)
def test_configuration_files_are_xml_for_a_server(file: Path) -> None:
    assert config_tree.read(file).name == "clickhouse"
