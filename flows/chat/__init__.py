"""Trying the models of a run: asked side by side, in a terminal or on a page; served with OpenAI's API."""
