"""Readers of users' data, one file a format; stages/config/formats.py names them."""
