"""Entry point of `user_scripts/encode_text.py`."""

from __future__ import annotations

from clickhouse_clip.udf import worker


def main(settings_path: str, argv: list[str]) -> int:
    """Serve `encode_text` on stdin and stdout."""
    return worker.main("encode_text.py", settings_path, argv)
