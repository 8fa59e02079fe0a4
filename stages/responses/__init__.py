"""The response store: keeps every model answer, looks answers up by request, and generates each only once.

`stages.responses.answers` generates answers and therefore needs an engine. The other modules read stored answers and
rows.
"""
