"""The response store: every model answer that costs money is kept, found again by what was asked, and paid for once.

`stages.responses.answers` asks models (and so needs an engine); here is what reads stored answers and rows.
"""
