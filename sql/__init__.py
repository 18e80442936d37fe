"""SQL files: schema, loading, indexes, search."""
