"""Policies that are made of others, which lie in folders inside theirs: parent_1, parent_2, ..."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from offrl.errors import PolicyError

Made = TypeVar("Made", bound=nn.Module)


def parent_folders(directory: Path, description: dict[str, Any]) -> list[Path]:
    """The parents' folders, in order; none for a policy of its own.

    Raises:
        PolicyError: other names than those that are written.
    """
    names = description.get("parents", [])
    if not isinstance(names, list) or names != [f"parent_{i}" for i in range(1, len(names) + 1)]:
        raise PolicyError(f"{directory}: the names of the parents' folders are damaged")
    return [directory / name for name in names]


def with_parents(
    make: Callable[..., Made], parents: Sequence[nn.Module], config: dict[str, Any], directory: Path | str
) -> Made:
    """A composed policy; everything that it knows besides its parents is in its description.

    Raises:
        PolicyError: the parents do not make it.
    """
    try:
        return make(parents=parents, **config).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{directory}: its parents do not make this policy: {error}") from error
