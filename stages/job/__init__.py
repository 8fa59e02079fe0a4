"""What a stage is told and how it reports: parameters, paths, fingerprint, progress, seeds."""
