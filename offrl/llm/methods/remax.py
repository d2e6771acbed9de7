"""ReMax: the reward of the greedy response is the baseline.

    A_i = R_i - R(greedy)            loss = -mean over tokens of min(r A, clip(r) A),     r = pi / pi_old

Source: arXiv:2310.10505.
Departures: the clipped ratio for several updates a batch, as volcengine/verl does; with one update it is REINFORCE with
this baseline and a mean over tokens.
"""

from typing import Any

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms


def estimator(settings: ClipSettings, length: int) -> Estimator:
    """The composition."""
    return recipe("remax", mask=clip(settings), regularizers=terms(settings, None))


def facts(settings: ClipSettings, options: Any) -> dict[str, str]:
    """Greedy responses come on top."""
    rollouts = options.prompts * (options.group + 1) * options.steps
    return {"greedy responses": f"{options.prompts} more a step", "rollouts in all": str(rollouts)}


METHOD = Method(config=ClipSettings, estimator=estimator, greedy_baseline=True, kl="reward", facts=facts)
