"""The command line: one file per verb. The doors contain no furniture."""
