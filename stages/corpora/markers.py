"""The marker for the position of an image in a message."""

IMAGE_MARKER = "<image>"
