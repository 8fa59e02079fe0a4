"""One module per benchmark or family; each has a tuple SPECS."""
