"""Record advantages, losses and gradients of verl's core algorithms on random ragged batches, where verl is installed.

python scripts/record_verl.py tests/llm/integrations/verl.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import verl
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig, PolicyLossConfig

ADVANTAGES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo_vectorized": {},
    "grpo without std": {"norm_adv_by_std_in_grpo": False},
    "gdpo": {},
    "rloo": {},
    "rloo_vectorized": {},
    "reinforce_plus_plus": {},
    "reinforce_plus_plus_baseline": {},
    "remax": {},
    "opo": {},
    "gpg": {},
}
TOKEN, ROWS_MEAN = "token-mean", "seq-mean-token-mean"
WIDE = {"clip_ratio_low": 1.0, "clip_ratio_high": 1.0}
LOSSES: dict[str, tuple[str, str, dict[str, Any]]] = {  # case -> registered name, mean, settings of the actor
    "token-mean": ("vanilla", TOKEN, {}),
    "seq-mean-token-mean": ("vanilla", ROWS_MEAN, {}),
    "seq-mean-token-sum": ("vanilla", "seq-mean-token-sum", {}),
    "seq-mean-token-sum-norm": ("vanilla", "seq-mean-token-sum-norm", {}),
    "clip higher, dual clip": ("vanilla", TOKEN, {"clip_ratio_high": 0.28, "clip_ratio_c": 1.5}),
    "gspo": ("gspo", ROWS_MEAN, {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    "sapo": ("sapo", ROWS_MEAN, {}),
    "gpg": ("gpg", TOKEN, {}),
    "cispo": ("cispo", TOKEN, {"clip_ratio_high": 0.28}),
    "geo_mean": ("geo_mean", ROWS_MEAN, {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "clip_cov": ("clip_cov", TOKEN, WIDE | {"policy_loss": {"clip_cov_ratio": 1.0, "clip_cov_lb": -0.1}}),
    "kl_cov": ("kl_cov", TOKEN, {"policy_loss": {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}}),
}
KLS = ("k1", "k2", "k3", "k1+", "k3+")
CORRECTIONS: tuple[tuple[str, str | float], ...] = (
    ("token", 1.2), ("sequence", 1.2), ("token", "0.8_1.2"), ("sequence", "0.8_1.2"),
)  # fmt: skip
GROUPS = ("a", "b", "a", "b", "a", "a", "b", "c")
"""Of unequal sizes, mixed, one of them a single row."""
LENGTH, PROCESSES, ALL_TOKENS, ALL_ROWS = 6, 2, 61, 20


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Ragged rows, ratios beyond both bounds, rewards at the last token."""
    g = torch.Generator().manual_seed(seed)
    shape, rows = (len(GROUPS), LENGTH), len(GROUPS)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    new = -torch.rand(shape, generator=g, dtype=torch.float64) * 3
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=g)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {
        "new": new, "old": new - 0.6 * normal(*shape), "ref": new - 0.5 * normal(*shape), "mask": mask,
        "rewards": (normal(rows) + 0.5) * (torch.arange(rows) != 3), "baseline": normal(rows),
        "advantages": normal(rows),
    }  # fmt: skip


def advantage(name: str, data: dict[str, torch.Tensor], settings: dict[str, Any]) -> list[list[float]]:
    """Of one estimator."""
    mask = data["mask"]
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, LENGTH)
    given: dict[str, Any] = {"index": np.array(GROUPS), "config": AlgoConfig(gamma=1.0), **settings}
    if name == "remax":
        given["reward_baselines"] = data["baseline"]
    function = core.get_adv_estimator_fn(name.split(" ")[0])
    rewards = data["rewards"][:, None] * last
    return rounded(function(token_level_rewards=rewards, response_mask=mask, **given)[0])


def loss(name: str, mean: str, data: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, Any]:
    """Value and gradient of one loss, as a part of a batch that is shared out over two processes."""
    new = data["new"].clone().requires_grad_()
    policy = PolicyLossConfig(**settings.get("policy_loss", {}))
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, **settings | {"policy_loss": policy}
    )
    config.global_batch_info.update(
        dp_size=PROCESSES, batch_num_tokens=ALL_TOKENS, global_batch_size=ALL_ROWS, loss_scale_factor=None
    )
    value, _ = core.get_policy_loss_fn(name)(
        old_log_prob=data["old"], log_prob=new, advantages=data["advantages"][:, None].expand_as(new).clone(),
        response_mask=data["mask"].bool(), loss_agg_mode=mean, config=config,
    )  # fmt: skip
    value.backward()
    return {"loss": float(value.detach()), "gradient": rounded(new.grad)}


def kl(name: str, data: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Values and gradients of an estimate, token by token."""
    new = data["new"].clone().requires_grad_()
    values = core.kl_penalty(new, data["ref"], name)
    values.sum().backward()
    return {"values": rounded(values.detach()), "gradient": rounded(new.grad)}


def rounded(x: torch.Tensor) -> list[list[float]]:
    """Ten digits."""
    return [[float(f"{value:.10g}") for value in row] for row in x.double().tolist()]


def recorded(seed: int) -> dict[str, Any]:
    """All of one batch."""
    data = batch(seed)
    corrections = []
    for level, threshold in CORRECTIONS:
        found, _ = compute_rollout_correction_weights(
            data["new"] - data["old"], data["mask"], level, threshold
        )
        corrections.append({"level": level, "threshold": threshold, "weights": rounded(found)})
    return {
        "batch": {name: value.tolist() for name, value in data.items()},
        "advantages": {name: advantage(name, data, settings) for name, settings in ADVANTAGES.items()},
        "losses": {name: loss(own, mean, data, given) for name, (own, mean, given) in LOSSES.items()},
        "kls": {name: kl(name, data) for name in KLS},
        "corrections": corrections,
    }


if __name__ == "__main__":
    facts = {"processes": PROCESSES, "tokens": ALL_TOKENS, "rows": ALL_ROWS, "groups": GROUPS}
    text = json.dumps({"verl": verl.__version__, **facts, "seeds": [recorded(0), recorded(1)]})
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
