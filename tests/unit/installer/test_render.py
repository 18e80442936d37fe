from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from clickhouse_clip.installer.discover import standalone
from clickhouse_clip.installer.record import Options
from clickhouse_clip.installer.render import drop_in_xml, functions_xml, server_xml, warmup_xml
from clickhouse_clip.udf import catalog

ODD = Path('/srv/Tom & Jerry\'s <"data">')


@pytest.mark.parametrize("function", catalog.FUNCTIONS, ids=lambda function: function.name)
def test_every_function_of_the_catalog_is_defined(function: catalog.SqlFunction) -> None:
    root = ElementTree.fromstring(functions_xml(Options(8)).encode())
    (found,) = [entry for entry in root if entry.findtext("name") == function.name]
    assert found.findtext("command") == f"{function.script} {function.name}"
    assert [entry.findtext("name") for entry in found.findall("argument")] == [function.argument]
    assert [entry.findtext("type") for entry in found.findall("argument")] == ["String"]


def test_nothing_else_is_defined() -> None:
    root = ElementTree.fromstring(functions_xml(Options(8)).encode())
    assert root.tag == "functions"
    assert len(root) == len(catalog.FUNCTIONS)


def test_every_setting_that_has_a_bad_or_changing_default_is_set() -> None:
    for function in ElementTree.fromstring(functions_xml(Options(8)).encode()):
        settings = {entry.tag: entry.text for entry in function if entry.tag != "argument"}
        del settings["name"], settings["command"]
        assert settings == {
            "type": "executable_pool",
            "return_type": "Array(Float32)",
            "return_name": "embedding",
            "format": "Native",
            "execute_direct": "1",
            "send_chunk_header": "1",
            "deterministic": "1",
            "stderr_reaction": "throw",
            "check_exit_code": "1",
            "pool_size": "8",
            "max_command_execution_time": "600",
            "command_read_timeout": "600000",
            "command_write_timeout": "600000",
            "command_termination_timeout": "5",
            "lifetime": "0",
        }


def test_drop_in_names_the_file_and_stays_apart_from_other_patterns() -> None:
    root = ElementTree.fromstring(drop_in_xml(ODD / "functions.xml").encode())
    (element,) = root
    assert root.tag == "clickhouse"
    assert element.text == str(ODD / "functions.xml")
    # ClickHouse merges elements of one name and equal attributes: without any, the server's own
    # pattern would be replaced.
    assert element.attrib == {"owner": "clickhouse-clip"}


def test_server_config_holds_odd_paths_unharmed() -> None:
    root = ElementTree.fromstring(server_xml(standalone(ODD / "etc", ODD / "data")).encode())
    assert root.findtext("path") == f"{ODD}/data/"
    assert root.findtext("user_files_path") == f"{ODD}/data/user_files/"
    assert root.findtext("user_scripts_path") == f"{ODD}/data/user_scripts/"
    assert root.findtext("user_defined_executable_functions_config") == "*_function.*ml"


def test_warm_up_stays_apart_from_other_startup_scripts() -> None:
    root = ElementTree.fromstring(warmup_xml("encode_text").encode())
    (scripts,) = root.findall("startup_scripts/scripts")
    assert scripts.attrib == {"owner": "clickhouse-clip"}
    assert "name = 'encode_text'" in (scripts.findtext("condition") or "")
    assert root.find("startup_scripts/throw_on_error") is None
