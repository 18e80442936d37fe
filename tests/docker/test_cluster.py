"""compose.cluster.yaml: two shards of two replicas, searched as one table. Needs real servers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.docker.conftest import ROOT
from tests.docker.containers import PASSWORD, wait_until

pytestmark = pytest.mark.usefixtures("real_server")

NODES = ["clickhouse-1-1", "clickhouse-1-2", "clickhouse-2-1", "clickhouse-2-2"]

#: Ids of two files of LAION, whose rows are on two shards.
CAPTIONS = {0: "a dog", 1: "a cat", 10_000_000: "a car", 10_000_001: "an apple"}


class Cluster:
    """The project that Docker Compose starts."""

    def __init__(self, command: str) -> None:
        self._command = [
            *command.split(),
            *("--file", str(ROOT / "docker" / "compose.cluster.yaml")),
            *("--project-name", f"clickhouse-clip-{uuid4().hex[:8]}"),
        ]

    def compose(self, *arguments: str) -> str:
        process = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, timeout=900
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()

    def ask(self, node: str, sql: str) -> list[str]:
        """The rows that a node answers with."""
        client = ("clickhouse-client", "--password", PASSWORD, "--query", sql)
        return self.compose("exec", "-T", node, *client).splitlines()


@pytest.fixture(scope="module")
def cluster(image: str, docker_compose_command: str) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, setting in (
            ("IMAGE", image),
            ("CLICKHOUSE_PASSWORD", PASSWORD),
            ("DIMENSIONS", "128"),
            ("HTTP_PORT", "127.0.0.1:"),
            ("TCP_PORT", "127.0.0.1:"),
        ):
            patch.setenv(name, setting)
        cluster = Cluster(docker_compose_command)
        try:
            cluster.compose("up", "--detach", "--no-build")
            # The last thing that the service `schema` makes.
            made = "SELECT count() FROM system.functions WHERE name = 'label'"
            wait_until(lambda: cluster.ask(NODES[-1], made) == ["1"], "tables and views")
            rows = ", ".join(f"({number}, '{caption}')" for number, caption in CAPTIONS.items())
            cluster.ask(
                NODES[0],
                "INSERT INTO laion (id, caption, image_embedding, text_embedding) "
                "SELECT id, caption, encode_text(caption), encode_text(caption) "
                f"FROM values('id Int64, caption String', {rows}) "
                "SETTINGS distributed_foreground_insert = 1",
            )
            yield cluster
        finally:
            cluster.compose("down", "--volumes")


@pytest.mark.parametrize("node", NODES)
def test_rows_are_on_both_shards_and_on_all_replicas(cluster: Cluster, node: str) -> None:
    # A replica fetches what the other one was given.
    count = "SELECT count() FROM laion_local"
    wait_until(lambda: cluster.ask(node, count) == ["2"], f"{node} has its half")


@pytest.mark.parametrize("node", NODES)
def test_every_node_searches_all_shards(cluster: Cluster, node: str) -> None:
    found = cluster.ask(
        node, "SELECT caption FROM search_captions(query = 'a dog', k = 4) ORDER BY score DESC"
    )
    assert found[0] == "a dog"
    assert sorted(found) == sorted(CAPTIONS.values())


def test_the_functions_answer_the_same_everywhere(cluster: Cluster) -> None:
    answers = [cluster.ask(node, "SELECT cityHash64(encode_text('a dog'))") for node in NODES]
    assert answers.count(answers[0]) == len(NODES)
