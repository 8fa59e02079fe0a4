"""Groups, packs, attention masks, log-probabilities."""
