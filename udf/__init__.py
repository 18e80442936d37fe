"""CLIP encoders behind ClickHouse's executable user-defined functions."""

__version__ = "0.1.0"
