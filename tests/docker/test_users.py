"""Ways to run the image: as any user, read-only, with fewer processors, with another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy
from tests.docker.conftest import StartContainer
from tests.docker.containers import docker, value

READ_ONLY = (
    "--read-only",
    "--tmpfs=/tmp",
    "--tmpfs=/var/log/clickhouse-server",
    "--tmpfs=/etc/clickhouse-server/users.d",
)

LENGTH = "SELECT length(encode_text('a dog'))"


@pytest.mark.parametrize("user", ["0:0", "101:101", "1000:1000", "65534:0"])
@pytest.mark.parametrize("options", [(), READ_ONLY], ids=["", "read-only"])
def test_any_user(start: StartContainer, user: str, options: tuple[str, ...]) -> None:
    container = start(f"--user={user}", *options)
    assert value(container.client(), LENGTH) == 128
    # root steps down.
    expected = "101" if user == "0:0" else user.partition(":")[0]
    folder = "/var/lib/clickhouse/clickhouse-clip/run"
    assert container.run("stat", "--format=%u %a", folder).split() == [expected, "700"]


def test_a_bundle_mounted_over_the_images(
    start: StartContainer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = toy.make_bundle(tmp_path_factory.mktemp("own") / "toy")
    for path in (bundle, *bundle.iterdir()):
        path.chmod(0o755)
    container = start(f"--volume={bundle}:/opt/clickhouse-clip/bundle:ro")
    assert value(container.client(), LENGTH) == 16


def test_the_encoder_keeps_to_the_containers_processors(start: StartContainer) -> None:
    container = start("--cpus=1")
    assert value(container.client(), LENGTH) == 128
    report = container.encoder()
    assert report is not None
    assert report["threads"] == 1


def test_a_command_runs_instead_of_the_server(image: str) -> None:
    answer = docker("run", "--rm", "--network=none", image, "id", "--user").stdout
    assert answer.strip() == "0"


def test_pictures_mounted_while_root_starts_the_server(start: StartContainer) -> None:
    """The entrypoint gives user files to the server's user, and cannot give what is read-only."""
    pictures = Path(__file__).parents[2] / "demo" / "pictures"
    container = start(f"--volume={pictures}:/var/lib/clickhouse/user_files/pictures:ro")
    assert value(container.client(), "SELECT length(encode_image('pictures/dog.webp'))") == 128
