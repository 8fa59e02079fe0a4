"""The `ril` command."""
