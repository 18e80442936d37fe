"""Entry point of `user_scripts/encode_image.py`."""

from __future__ import annotations

from clickhouse_clip.udf import worker


def main(settings_path: str, argv: list[str]) -> int:
    """Serve one of the `encode_image` functions on stdin and stdout."""
    return worker.main("encode_image.py", settings_path, argv)
