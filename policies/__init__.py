"""Imported as offrl.policies."""

if not __name__.startswith("offrl."):
    raise ImportError(
        f"import this package as 'offrl.policies', not {__name__!r}; from a checkout run 'pip install -e .' first"
    )
