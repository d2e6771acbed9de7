"""Dr. GRPO: GRPO without its two biases, the division by the group's std and by each response's length.

    A_i = R_i - mean of the group            loss = -1/(B T_max) sum_it min(r A, clip(r) A)

Source: arXiv:2503.20783.
Departures: T_max is the task's longest response.
"""

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms


def estimator(settings: ClipSettings, length: int) -> Estimator:
    """The composition."""
    return recipe("dr_grpo", mask=clip(settings), length=length, regularizers=terms(settings))


METHOD = Method(config=ClipSettings, estimator=estimator, grouped=True)
