"""Sweeps as a whole: what is searched, what it costs, where it runs, what is chosen and how that is reported."""
