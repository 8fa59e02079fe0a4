"""Questions: adapters for users' data, canonical rows, and the tiny world."""
