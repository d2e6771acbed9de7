"""SFT: cross-entropy on demonstrations; the start of task t2, and an instance of the same estimator.

    loss = -mean over tokens of log pi(a_t | s_t)

Source: arXiv:2509.04419, for its place among the others.
Departures: none known.
"""

from dataclasses import dataclass
from typing import Any

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class SFTConfig(LossSettings):
    """Settings of SFT."""

    noise: float = 0.0
    """Share of the demonstrations' tokens that are random instead."""


def estimator(settings: SFTConfig, length: int) -> Estimator:
    """The composition."""
    return recipe("sft", regularizers=terms(settings))


def unfit(settings: SFTConfig, options: Any, task: Any) -> str | None:
    """Noise in texts."""
    text = settings.noise > 0.0 and hasattr(task, "template")
    return f"demonstrations of {task.name} are text: leave --noise out" if text else None


METHOD = Method(config=SFTConfig, estimator=estimator, data="demonstrations", unfit=unfit)
