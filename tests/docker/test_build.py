"""What is in the image, and what a build says when it cannot go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docker.containers import docker


def in_container(image: str, script: str, *options: str) -> tuple[int, str]:
    """What a shell script in a container comes to: its exit code, and all it printed."""
    process = docker(
        *("run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", *options),
        *(image, "-c", script),
        check=False,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"BUNDLE": "nowhere"}, "BUNDLE=nowhere: the build context has no bundle there"),
        ({"BUNDLE": "", "MODEL": ""}, "which model?"),
        (
            {"BUNDLE": "", "MODEL": "ViT-B-32", "WHEELS": "nowhere"},
            "WHEELS=nowhere: the build context has no such folder",
        ),
        # A folder that has not what an export needs, without a network: nothing is downloaded.
        ({"BUNDLE": "", "MODEL": "ViT-B-32", "WHEELS": "docker"}, "No matching distribution"),
    ],
)
def test_a_model_that_cannot_be_had(builder: str, settings: dict[str, str], message: str) -> None:
    environment = {"WHEELS": "", "PRETRAINED": "openai", **settings}
    options = [f"--env={name}={value}" for name, value in environment.items()]
    code, output = in_container(builder, "sh /context/docker/make-bundle.sh", *options)
    assert code != 0
    assert message in output


def test_a_damaged_bundle(builder: str, tmp_path: Path) -> None:
    broken = tmp_path / "text.bin"
    broken.write_bytes(b"cut off")
    script = "sh /context/docker/make-bundle.sh"
    mount = f"--volume={broken}:/context/demo/bundle/text.bin:ro"
    code, output = in_container(builder, script, mount, "--env=BUNDLE=demo/bundle")
    assert code != 0
    assert "text.bin" in output


@pytest.mark.parametrize(
    ("taken", "what"),
    [
        ("apt-get", "there are no packages to install"),
        ("nothing", "packages cannot be downloaded"),
    ],
)
def test_a_base_image_without_python(builder: str, taken: str, what: str) -> None:
    script = (
        "rm -f /usr/bin/python3* /usr/local/bin/python3*;"
        f"rm -f /usr/bin/{taken};"
        "sh /usr/local/lib/clickhouse-clip/install-python.sh"
    )
    code, output = in_container(builder, script)
    assert code != 0, what
    assert "It needs Python 3.11 or newer" in output


def test_the_image_has_the_serving_side_only(image: str, base_image: str) -> None:
    site_packages = "/opt/clickhouse-clip/lib/python3*/site-packages"
    _, output = in_container(image, f"ls {site_packages}")
    names = set(output.split())
    assert {"clickhouse_clip", "numpy", "openvino"} <= names
    assert not {"torch", "open_clip", "onnx", "pip", "setuptools", "pytest"} & names
    tools = "for tool in gcc cc c++ make pip pip3; do command -v $tool; done; true"
    assert in_container(image, tools) == in_container(base_image, tools)


def test_the_image_is_small(image: str, base_image: str) -> None:
    """The serving side adds well under 500 MB; what the model takes comes on top of it."""

    def size(tag: str) -> int:
        (found,) = json.loads(docker("image", "inspect", tag).stdout)
        return int(found["Size"])

    _, output = in_container(image, "du --summarize --bytes /opt/clickhouse-clip/bundle")
    added = size(image) - size(base_image) - int(output.split()[0])
    print(f"base {size(base_image) / 1e6:.0f} MB, functions {added / 1e6:.0f} MB")
    assert added < 450e6


def test_what_is_placed_belongs_to_the_servers_user(image: str) -> None:
    files = (
        "/etc/clickhouse-server/clickhouse-clip/settings.json "
        "/etc/clickhouse-server/config.d/clickhouse-clip.xml "
        "/opt/clickhouse-clip/user_scripts/encode_text.py"
    )
    assert in_container(image, f"stat --format=%u {files}") == (0, "101\n101\n101\n")
