"""Rules that extract an answer from a reply: one module per harness, pure functions, no benchmark names.

Each function is the rule of a harness at the version in the profile's name, or ours. Where a harness guesses (a random
letter, the nearest option), ours returns None: a missing answer is `unparsed`, never invented.
"""
