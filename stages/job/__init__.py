"""What a stage receives and how it reports: parameters, paths, fingerprint, progress, seeds."""
