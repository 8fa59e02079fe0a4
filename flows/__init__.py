"""Who runs a stage: DVC, Prefect, the command line. No machine learning in here."""
