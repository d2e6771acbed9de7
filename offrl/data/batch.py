"""The batch that every learner's ``update`` receives."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """``S`` seeds' batches of ``B`` transitions each (S is 1 in a plain run); float32, on one device.

    ``terminated`` is 1 where the episode truly ended (no bootstrap). A time-limit cut is *not* a
    termination: it stays 0 and the target bootstraps through it.

    Methods that ask for windows get ``L`` consecutive steps of one episode for each of the ``B``: every field has an
    axis L after B. A window that reaches beyond its episode repeats the last step there, with ``valid`` 0.
    """

    observations: Tensor  # (S, B, O), normalized if the run normalizes
    actions: Tensor  # (S, B, A), in the action box of the environment
    rewards: Tensor  # (S, B), after the run's reward scale and shift
    next_observations: Tensor  # (S, B, O)
    terminated: Tensor  # (S, B), 0 or 1
    rows: Tensor  # (S, B) int64, rows of the transition table that the batch was drawn from
    next_actions: Tensor | None = None  # (S, B, A), where the method asks for them
    returns_to_go: Tensor | None = None  # (S, B), likewise; discounted
    steps: Tensor | None = None  # (S, B, L) int64, of windows: steps since the episode's start
    images: Tensor | None = None  # (S, B, L, P) bytes, of windows, where the method looks at images
    valid: Tensor | None = None  # (S, B, L), of windows: 0 beyond the end of the episode, else 1
