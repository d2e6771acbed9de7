"""What goes wrong with a user's input. The command line prints these as one line, without a traceback."""

from dataclasses import fields
from typing import Any


class DatasetError(ValueError):
    """The data break a rule that the loaders rely on. The message says which rule, and where."""


class CheckpointError(ValueError):
    """A checkpoint or run directory cannot be used: damaged, of another format, or of another algorithm."""


class ConfigError(ValueError):
    """A setting, a name or a combination of options is not valid. The message says what is."""


class PolicyError(ValueError):
    """A policy file is damaged, of an unknown kind, or does not fit the environment."""


class UsageError(Exception):
    """The command line cannot be understood; the message says which part. Exit code 2."""


class Stopped(Exception):  # noqa: N818 - not an error: a signal was obeyed
    """A signal ended the work after everything was saved; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingExtraError(ImportError):
    """An optional library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"this needs {library}, which is not installed; run: pip install 'offrl[{extra}]'")


USER_ERRORS = (DatasetError, CheckpointError, ConfigError, PolicyError, MissingExtraError, OSError)


def unused(settings: Any, reason: str, *names: str) -> None:
    """Refuse settings that have no effect beside the others.

    Raises:
        ConfigError: one of them is not at its default.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise ConfigError(f"{name} has no effect {reason}: leave it out")
