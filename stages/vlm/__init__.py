"""Model families, one file each: positions, image tokens, loading. Family names are used only in this package.

Modules that need torch and transformers are imported on demand: they take 0.4 GiB, which a stage that finds all answers
in the store does not need.
"""
