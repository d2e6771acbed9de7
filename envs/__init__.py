"""Imported as offrl.envs."""

if not __name__.startswith("offrl."):
    raise ImportError(
        f"import this package as 'offrl.envs', not {__name__!r}; from a checkout run 'pip install -e .' first"
    )
