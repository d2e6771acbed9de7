"""Published methods as compositions: what differs between them fits on one line each.

``recipe("dapo")`` is the estimator; ``recipe("grpo", regularizers=[("k3", 0.04)])`` exchanges parts.
What a method does outside its estimator (dropping and resampling groups, learning rates) is not here.
"""

from typing import Any

from offrl.estimators.compose import Estimator, compose

RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"advantage": "ones", "denominator": "current"},
    # arXiv:1707.06347; on trajectories, returns-to-go in place of the outcome
    "reinforce": {
        "advantage": "returns_to_go",
        "denominator": "current",
        "aggregation": "seq-mean-token-sum",
    },
    "ppo": {"advantage": ["gae", "whiten"], "mask": "ppo_clip"},
    "grpo": {"advantage": "group_std", "mask": "ppo_clip", "aggregation": "seq-mean-token-mean"},
    "dr_grpo": {"advantage": "group_mean", "mask": "ppo_clip", "aggregation": "fixed-length"},
    "dapo": {"advantage": "group_std", "mask": "clip_higher"},
    "rloo": {
        "advantage": "group_leave_one_out",
        "denominator": "current",
        "aggregation": "seq-mean-token-sum",
    },
    "remax": {"advantage": "greedy", "mask": "ppo_clip"},
    "reinforce++": {"advantage": ["outcome", "whiten"], "mask": "ppo_clip"},
    "reinforce++-baseline": {"advantage": ["group_mean", "whiten"], "mask": "ppo_clip"},
    "opo": {"advantage": "group_length", "mask": "ppo_clip"},
    "cispo": {"advantage": "group_std", "denominator": "truncated"},
    "gspo": {
        "advantage": "group_std",
        "denominator": "sequence",
        "mask": ("ppo_clip", {"low": 3e-4, "high": 4e-4}),
        "aggregation": "seq-mean-token-mean",
    },
    "gmpo": {
        "advantage": "group_std",
        "denominator": "geometric",
        "mask": "log_clip",
        "aggregation": "seq-mean-token-mean",
    },
    "sapo": {"advantage": "group_std", "shaping": "sapo", "aggregation": "seq-mean-token-mean"},
    "vespo": {"advantage": "group_std", "denominator": "sequence_product", "shaping": "vespo"},
    "luspo": {
        "advantage": "group_std",
        "denominator": "sequence",
        "mask": ("ppo_clip", {"low": 3e-4, "high": 4e-4}),
        "shaping": "length",
        "aggregation": "seq-mean-token-mean",
    },
    "minirl": {
        "advantage": "group_mean",
        "denominator": "rollout",
        "mask": "decoupled_clip",
        "aggregation": "seq-mean-token-sum",
    },
    "luffy": {"advantage": "group_std", "denominator": "one", "shaping": "luffy"},
}


def recipe(name: str, **changes: Any) -> Estimator:
    """The estimator of a published method, with parts exchanged as in ``compose``.

    Args:
        name: of ``RECIPES``. ``dr_grpo`` needs the ``length`` to divide by.
        changes: arguments of ``compose``.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known are {', '.join(sorted(RECIPES))}")
    return compose(**RECIPES[name] | changes)
