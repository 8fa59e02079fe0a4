"""Model families: one file each for positions, image tokens, loading and tiny recipes. Nothing outside knows a family's
name.

What needs torch and transformers is imported when it is first asked for: they take 0.4 GiB, which a stage that finds
every answer in the store does without.
"""
