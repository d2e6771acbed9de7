"""CoPG: regularized rewards of the responses to a prompt are driven to one value, whatever policy sampled them.

    R_kl(y) = R(y) - kl log(pi(y) / ref(y))            loss = mean over prompts of Var(R_kl) / (2 kl)

Var is the unbiased variance over a prompt's responses, so that pairs give (R_kl - R_kl')^2 / (4 kl). Its gradient is
RLOO's on R_kl under the current policy, and vanishes at pi = ref exp(R / kl) / Z alone, whatever sampled: no ratios.

Source: arXiv:2406.19185.
Departures: no code is public; more than two responses a prompt enter as all their pairs. With ``--delay`` of as many
steps as the run all samples come from the first model.
"""

from dataclasses import dataclass

from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.group_losses import GroupEstimator, group_loss
from offrl.estimators.groups import Groups
from offrl.llm.method import LossSettings, Method, terms


@dataclass(frozen=True, kw_only=True)
class CoPGConfig(LossSettings):
    """Settings of CoPG."""

    kl: float = 0.1
    """Weight of the KL to the model that training began with, in the objective; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kl > 0.0:
            raise ConfigError(f"copg needs --kl above 0, got {self.kl}: without it no policy is the best")


def contrast(
    log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, group_ids: Tensor, mask: Tensor, *, kl: float
) -> Tensor:
    """Var(R_kl) / (2 kl) of each group, differentiable in ``log_probs``; (G,)."""
    groups = Groups(group_ids)
    regularized = rewards - kl * sequence_sum(log_probs - ref_log_probs, mask)
    squares = groups.sum(groups.centered(regularized).square())
    losses: Tensor = squares / (groups.size - 1).clamp(min=1) / (2.0 * kl)
    return losses


def estimator(settings: CoPGConfig, length: int) -> GroupEstimator:
    """The loss."""
    return group_loss((contrast, {"kl": settings.kl}), regularizers=terms(settings, None))


METHOD = Method(config=CoPGConfig, estimator=estimator, grouped=True, coupled=True)
