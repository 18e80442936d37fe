"""Places the functions into a ClickHouse server."""
