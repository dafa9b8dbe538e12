"""What may be wrong with a dataset before a training, and fixes that make a new version. See report.py."""
