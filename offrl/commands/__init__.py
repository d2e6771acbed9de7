"""The commands of the offrl command line, one module each."""
