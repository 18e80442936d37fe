from __future__ import annotations

from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError

from clickhouse_clip.config import render


def test_values_are_escaped() -> None:
    text = render("drop_in.xml.j2", functions_file="</clickhouse>&<a b='\"'>")
    assert ElementTree.fromstring(text.encode())[0].text == "</clickhouse>&<a b='\"'>"


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="functions_file"):
        render("drop_in.xml.j2")
