"""RLOO: REINFORCE whose baseline is the mean reward of the other responses to the same prompt.

    A_i = R_i - mean_{j != i} R_j            loss = -mean_i A_i sum_t log pi(a_it | s_it)

R_i holds -kl sum_t log(pi_old / ref) if there is a KL coefficient.

Source: arXiv:2402.14740.
Departures: none known.
"""

from offrl.estimators.compose import Estimator
from offrl.estimators.recipes import recipe
from offrl.llm.method import LossSettings, Method, terms


def estimator(settings: LossSettings, length: int) -> Estimator:
    """The composition."""
    return recipe("rloo", regularizers=terms(settings, None))


METHOD = Method(config=LossSettings, estimator=estimator, grouped=True, kl="reward")
