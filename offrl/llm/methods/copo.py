"""CoPO: where the responses to a prompt agree, they are compared with those to other prompts, not with each other.

    H_q = -sum_c (n_c / G) log2(n_c / G)    over the final answers c to prompt q
    A_i = GRPO's,   B_q = (mean_i R_i - mean) / (std + 1e-6) over the prompts of the batch,   the same for all of q
    loss = -mean_i 1/L_i sum_t [w_i clipped(A_i) + (1 - w_i) clipped(B_q)],     w_i = sigmoid(k (H_q - b)) [R_i != 0]

clipped(A) is PPO's min(r A, clip(r) A), no less than 3 A for A < 0; the two terms are clipped each by its own sign.

Source: arXiv:2508.04138.
Departures: the blends are those of the published code; responses without an answer are one class; with a single prompt
B is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offrl.errors import ConfigError, unused
from offrl.estimators.advantages import group_std, whiten
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Method, clip, terms

BLENDS = (
    "soft-with-zero", "only-soft", "only-zero", "soft-with-forced", "only-forced", "only-global", "no-global",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CoPOConfig(ClipSettings):
    """Settings of CoPO."""

    blend: str = "soft-with-zero"
    """w: soft is the sigmoid, zero takes only rewards other than 0 and forced only unequal groups; 'only-global' is 0,
    'no-global' (GRPO) 1."""
    steepness: float = 5.0
    """k of the sigmoid."""
    bits: float = 1.0
    """b of the sigmoid: the entropy of answers at which both terms weigh the same."""
    consistency: bool = False
    """A prompt's mean reward counts less the more its answers differ: times 1 - (1 - 1/G) H / log2 G."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend.replace(" ", "-") not in BLENDS:
            raise ConfigError(f"unknown blend {self.blend!r}; there are {', '.join(BLENDS)}")
        if "soft" not in self.blend:
            unused(self, f"with blend {self.blend}", "steepness", "bits")
        if self.blend.replace(" ", "-") == "no-global":
            unused(self, "with blend no-global", "consistency")


def answer_entropy(groups: Groups, answer_ids: Tensor) -> Tensor:
    """Entropy of the answers of each group, bits: (B,) -> (G,)."""
    pairs = torch.stack([groups.index, answer_ids], dim=1)
    _, index, counts = torch.unique(pairs, dim=0, return_inverse=True, return_counts=True)
    return groups.mean((groups.rows(groups.size).double() / counts[index]).log2())


def local_and_global(
    rewards: Tensor, group_ids: Tensor, answer_ids: Tensor,
    *, blend: str, steepness: float, bits: float, consistency: bool,
) -> Tensor:  # fmt: skip
    """Both advantages of each row, w A and (1 - w) B; (B, 1, 2), or (B,) without B."""
    local, groups = group_std(rewards, group_ids), Groups(group_ids)
    if blend == "no-global":
        return local
    entropy = answer_entropy(groups, answer_ids).to(rewards)
    means, size = groups.mean(rewards), groups.size.to(rewards)
    if consistency:
        means = means * (1.0 - (1.0 - 1.0 / size) / size.clamp(min=2.0).log2() * entropy)
    across = groups.rows(whiten(means, epsilon=1e-6))
    share = torch.full_like(rewards, float(blend != "only-global"))
    if "soft" in blend:
        share = share * groups.rows((steepness * (entropy - bits)).sigmoid())
    if "zero" in blend:
        share = share * (rewards != 0.0)
    if "forced" in blend:
        share = share * (local != 0.0)
    return torch.stack([share * local, (1.0 - share) * across], dim=-1)[:, None]


def estimator(settings: CoPOConfig, length: int) -> Estimator:
    """The composition."""
    s = settings
    given = {
        "blend": s.blend.replace(" ", "-"),
        "steepness": s.steepness,
        "bits": s.bits,
        "consistency": s.consistency,
    }
    masks = [clip(s), "dual_clip"]
    return recipe("grpo", advantage=(local_and_global, given), mask=masks, regularizers=terms(s))


METHOD = Method(config=CoPOConfig, estimator=estimator, grouped=True, answers=True)
