"""The schema of params.yaml: blocks, switches, the whole file, and the table of stages."""
