"""The marker that stands in a message where an image goes."""

IMAGE_MARKER = "<image>"
