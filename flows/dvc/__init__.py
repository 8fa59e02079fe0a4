"""DVC: the only code that starts dvc, reads its output, its locks and its recorded experiments."""
