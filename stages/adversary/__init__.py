"""The discriminator: its inputs, training (Eq. 1), scores and diagnostics."""
