"""Rules that read an answer out of a reply: one module a harness, pure functions, no benchmark names.

Each function is the rule of a harness at the version that the profile's name gives, or ours. Where a harness guesses (a
random letter, the nearest option to nothing), ours says None: an answer that was not given is `unparsed`, never
invented.
"""
