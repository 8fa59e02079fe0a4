"""The discriminator: what it reads, how it learns (Eq. 1), what its scores say."""
