"""What may be said in params.yaml: blocks, switches, the whole of it, and the table of stages."""
