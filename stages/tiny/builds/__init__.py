"""How tiny models are made: shapes, tokenizers, what they are trained on, the training itself."""
