"""Readers of users' data, one module per format; stages/config/formats.py lists them."""
