"""One file a benchmark or family; each has a tuple SPECS."""
