"""The image, built once, on the base image that this machine can have.

BASE_IMAGE, WHEELS, BUNDLE and PIP_INDEX_URL in the environment are the build arguments of these
names; `run` beside this file sets them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docker.containers import PASSWORD, Container, docker

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
OFFICIAL = re.findall("^ARG BASE_IMAGE=(.*)$", DOCKERFILE.read_text(), re.MULTILINE)[0]

StartContainer = Callable[..., Container]


def answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session")
def base_image() -> str:
    if not answers("docker", "version"):
        pytest.skip("no Docker engine answers; make test-docker starts one where it may")
    base = os.environ.get("BASE_IMAGE", OFFICIAL)
    if not answers("docker", "image", "inspect", base):
        pytest.skip(f"the base image {base} is not here; make test-docker gets or makes one")
    return base


@pytest.fixture(scope="session")
def is_stand_in(base_image: str) -> bool:
    (found,) = json.loads(docker("image", "inspect", base_image).stdout)
    return "clickhouse-clip.stand-in" in (found["Config"]["Labels"] or {})


def build(target: str, base: str) -> str:
    """Build a target of the Dockerfile; its tag."""
    arguments = {
        "BASE_IMAGE": base,
        "BUNDLE": os.environ.get("BUNDLE", "demo/bundle"),
        **{
            name: os.environ[name]
            for name in ("WHEELS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
            if name in os.environ
        },
    }
    tag = f"clickhouse-clip-test:{target}"
    # With wheels, nothing is downloaded: without a network, the build shows it.
    network = "none" if "WHEELS" in os.environ else "host"
    docker(
        "build",
        f"--file={DOCKERFILE}",
        f"--target={target}",
        f"--tag={tag}",
        f"--network={network}",
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        str(ROOT),
    )
    return tag


@pytest.fixture(scope="session")
def builder(base_image: str) -> str:
    """The stage that has the package, pip and the build context."""
    return build("builder", base_image)


@pytest.fixture(scope="session")
def image(base_image: str) -> str:
    return build("server", base_image)


@contextmanager
def made(kind: str) -> Iterator[str]:
    """A network or a volume, and its name."""
    name = f"clickhouse-clip-{uuid4().hex[:8]}"
    docker(kind, "create", name)
    yield name
    docker(kind, "rm", name)


@pytest.fixture(scope="session")
def network(base_image: str) -> Iterator[str]:
    assert base_image
    with made("network") as name:
        yield name


@pytest.fixture
def volume(base_image: str) -> Iterator[str]:
    assert base_image
    with made("volume") as name:
        yield name


@pytest.fixture
def start(image: str, network: str, volume: str) -> Iterator[StartContainer]:
    """Starts containers, each on the test's volume; they are removed afterwards."""
    started = []

    def start(*options: str, of: str = image) -> Container:
        name = f"clickhouse-clip-{uuid4().hex[:8]}"
        started.append(name)
        docker(
            "run",
            "--detach",
            f"--name={name}",
            f"--network={network}",
            "--publish=127.0.0.1::8123",
            f"--env=CLICKHOUSE_PASSWORD={PASSWORD}",
            f"--volume={volume}:/var/lib/clickhouse",
            *options,
            of,
        )
        return Container(name)

    yield start
    for name in started:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture(scope="session")
def real_server(is_stand_in: bool) -> None:
    if is_stand_in:
        pytest.skip(f"needs a real server: the base image is the stand-in, not {OFFICIAL}")


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    """Either generation of Docker Compose."""
    if answers("docker", "compose", "version"):
        return "docker compose"
    if shutil.which("docker-compose"):
        return "docker-compose"
    pytest.skip("there is no Docker Compose (docker compose, docker-compose)")


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(ROOT / "docker" / "compose.yaml")


@pytest.fixture(scope="session")
def docker_setup(image: str) -> str:
    os.environ.update(
        IMAGE=image,
        CLICKHOUSE_PASSWORD=PASSWORD,
        # Any free port.
        HTTP_PORT="127.0.0.1:",
        TCP_PORT="127.0.0.1:",
    )
    return "up --detach --no-build"
