"""GRPO: rewards normalized within the group of responses to one prompt, in PPO's clipped surrogate.

    A_i = (R_i - mean) / (std + 1e-6) of the group
    loss = -mean_i 1/L_i sum_t [min(r A, clip(r) A) - kl k3(pi, ref)],     r = pi / pi_old

Source: arXiv:2402.03300.
Departures: the standard deviation is the unbiased one (as volcengine/verl and huggingface/trl); kl is 0 unless given.
"""

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms


def estimator(settings: ClipSettings, length: int) -> Estimator:
    """The composition."""
    return recipe("grpo", mask=clip(settings), regularizers=terms(settings))


METHOD = Method(config=ClipSettings, estimator=estimator, grouped=True)
