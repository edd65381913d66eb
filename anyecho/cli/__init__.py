"""The command line: parses arguments, prints and exits. One module per verb; the library does the work."""
