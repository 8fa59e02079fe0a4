"""Questions: adapters for users' data, and canonical rows."""
