"""Methods by name, one file each, and the parts they are made of ('offrl llm list')."""

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offrl.errors import ConfigError

if TYPE_CHECKING:
    from offrl.llm.method import Method


@dataclass(frozen=True)
class Entry:
    """What is known of a method without loading it."""

    advantage: str
    denominator: str
    mask: str
    aggregation: str
    data: str
    source: str
    status: str = "tested"


METHODS = {
    "sft": Entry("ones", "current", "-", "token-mean", "demonstrations", "arXiv:2509.04419"),
    "reinforce": Entry("batch_mean", "current", "-", "seq-mean-token-sum", "rollouts", "Williams 1992"),
    "rloo": Entry(
        "group_leave_one_out", "current", "-", "seq-mean-token-sum", "rollouts", "arXiv:2402.14740"
    ),
    "remax": Entry("greedy", "old", "ppo_clip", "token-mean", "rollouts", "arXiv:2310.10505"),
    "reinforce_plus_plus": Entry(
        "returns_to_go, whiten", "old", "ppo_clip", "token-mean", "rollouts", "arXiv:2501.03262"
    ),
    "ppo": Entry("gae, whiten", "old", "ppo_clip", "token-mean", "rollouts", "arXiv:1707.06347"),
    "grpo": Entry("group_std", "old", "ppo_clip", "seq-mean-token-mean", "rollouts", "arXiv:2402.03300"),
    "dr_grpo": Entry("group_mean", "old", "ppo_clip", "fixed-length", "rollouts", "arXiv:2503.20783"),
    "dapo": Entry("group_std", "old", "ppo_clip", "token-mean", "unequal groups", "arXiv:2503.14476"),
    "gspo": Entry("group_std", "sequence", "ppo_clip", "seq-mean-token-mean", "rollouts", "arXiv:2507.18071"),
    "cispo": Entry("group_std", "truncated", "-", "token-mean", "rollouts", "arXiv:2506.13585"),
    "gpg": Entry("group_mean, rescaled", "current", "-", "token-mean", "rollouts", "arXiv:2504.02546"),
    "sapo": Entry("group_std", "old", "-", "seq-mean-token-mean", "rollouts", "arXiv:2511.20347"),
    "luffy": Entry(
        "group_std", "of_samples_or_one", "clip_samples", "token-mean", "both", "arXiv:2504.14945"
    ),
    "gmpo": Entry(
        "group_std", "geometric", "log_clip", "seq-mean-token-mean", "rollouts", "arXiv:2507.20673"
    ),
    "beta_norm": Entry(
        "beta_norm", "old", "ppo_clip, dual_clip", "seq-mean-token-sum", "rollouts", "arXiv:2506.02864"
    ),
    "clip_cov": Entry("group_std", "old", "ppo_clip, unpicked", "token-mean", "rollouts", "arXiv:2505.22617"),
    "kl_cov": Entry("group_std", "old", "-", "token-mean", "rollouts", "arXiv:2505.22617"),
    "real": Entry("real (a loss)", "-", "-", "mean of groups", "rollouts", "arXiv:2602.05630"),
    "p3o": Entry("pairs (a loss)", "-", "-", "mean of groups", "rollouts", "arXiv:2310.00212"),
    "fdpg": Entry("pseudo_reward", "proposal", "-", "seq-mean-token-sum", "rollouts", "arXiv:2302.08215"),
    "minirl": Entry(
        "group_mean", "rollout", "decoupled_clip", "seq-mean-token-sum", "rollouts", "arXiv:2512.01374"
    ),
    "gdpo": Entry(
        "each_group_std, whiten_rows",
        "old",
        "ppo_clip",
        "seq-mean-token-mean",
        "rollouts",
        "arXiv:2601.05242",
    ),
    "hpt": Entry(
        "by_prompt (a loss)", "-", "-", "mean of groups", "samples or demonstration", "arXiv:2509.04419"
    ),
    "adora": Entry(
        "group_std, reweighted", "old", "ppo_clip", "seq-mean-token-mean", "rollouts", "arXiv:2602.10019"
    ),
    "capo": Entry(
        "group_std", "old", "ppo_clip", "seq-mean-token-mean", "tokens of small moves", "arXiv:2510.00819"
    ),
    "copg": Entry("contrast (a loss)", "-", "-", "mean of groups", "rollouts", "arXiv:2406.19185"),
    "copo": Entry(
        "local_and_global",
        "old",
        "ppo_clip, dual_clip",
        "seq-mean-token-mean",
        "rollouts",
        "arXiv:2508.04138",
    ),
    "d3s": Entry(
        "group_std", "old", "ppo_clip", "seq-mean-token-mean", "spread rows, tokens", "arXiv:2509.22115"
    ),
    "oblr_po": Entry(
        "group_weighted",
        "old",
        "ppo_clip",
        "seq-mean-token-sum",
        "rollouts",
        "arXiv:2511.23310",
        "reconstruction",
    ),
    "empg": Entry(
        "group_std, modulated", "old", "ppo_clip", "seq-mean-token-mean", "episodes", "arXiv:2509.09265"
    ),
    "epo": Entry("group_std", "old", "ppo_clip", "seq-mean-token-mean", "episodes", "arXiv:2509.22576"),
    "polychromic": Entry("gae, mixed", "old", "ppo_clip", "token-mean", "episodes, sets", "arXiv:2509.25424"),
    "retroformer": Entry("group_mean", "old", "ppo_clip", "token-mean", "reflections", "arXiv:2308.02151"),
    "pacs": Entry("classification (a loss)", "-", "-", "mean of rows", "rollouts", "arXiv:2509.02522"),
}

IN_TRL = frozenset(
    ("reinforce", "rloo", "reinforce_plus_plus", "grpo", "dr_grpo", "gspo", "cispo", "gpg", "sapo", "gmpo")
) | {"beta_norm", "gdpo", "minirl", "adora"}
"""Methods that offrl.llm.integrations.trl can run."""
IN_VERL = IN_TRL - {"gdpo"} | {"remax"}
"""Methods that offrl.llm.integrations.verl can run."""
NATIVE = {  # method -> framework -> its own name for it, and what differs from ours
    "rloo": {
        "trl": "RLOOTrainer: clips the ratio of whole responses",
        "verl": "adv_estimator rloo: a response alone in its group keeps its reward; the loss is the actor's",
    },
    "remax": {
        "verl": "adv_estimator remax, loss_mode vanilla: also clips negative advantages at clip_ratio_c"
    },
    "reinforce_plus_plus": {
        "verl": "adv_estimator reinforce_plus_plus[_baseline], loss_mode vanilla: also clips at clip_ratio_c"
    },
    "ppo": {"verl": "adv_estimator gae with a critic model of its own"},
    "grpo": {
        "trl": "loss_type grpo: std + 1e-4 where ours is std + 1e-6",
        "verl": "adv_estimator grpo, loss_mode vanilla, loss_agg_mode seq-mean-token-mean: also clips at clip_ratio_c",
    },
    "dr_grpo": {
        "trl": "loss_type dr_grpo with scale_rewards none",
        "verl": "norm_adv_by_std_in_grpo false, loss_agg_mode seq-mean-token-sum-norm: also clips at clip_ratio_c",
    },
    "dapo": {"trl": "loss_type dapo: does not sample other groups", "verl": "recipe dapo"},
    "gspo": {"trl": "loss_type grpo with importance_sampling_level sequence", "verl": "loss_mode gspo"},
    "cispo": {
        "trl": "loss_type cispo: epsilon_high is the whole bound, ours stands above 1",
        "verl": "loss_mode cispo: also a floor, our --floor",
    },
    "gpg": {"verl": "adv_estimator gpg, loss_mode gpg: counts rewards other than 0, our --counts rewarded"},
    "sapo": {"trl": "loss_type sapo", "verl": "loss_mode sapo"},
    "gmpo": {"verl": "loss_mode geo_mean: means are over the micro-batch"},
    "clip_cov": {"verl": "loss_mode clip_cov: statistics of the micro-batch"},
    "kl_cov": {"verl": "loss_mode kl_cov: statistics of the micro-batch"},
    "gdpo": {
        "trl": "multi_objective_aggregation normalize_then_sum",
        "verl": "adv_estimator gdpo: whitened over tokens, our --whiten-over tokens",
    },
    "oblr_po": {
        "verl": "adv_estimator optimal_token_baseline: the baseline alone, token by token, all rows included"
    },
}


def runs_in(name: str) -> tuple[str, ...]:
    """Whose loop can run a method of ours: own, trl, verl."""
    return ("own", *(["trl"] if name in IN_TRL else []), *(["verl"] if name in IN_VERL else []))


def load_method(name: str) -> "Method":
    """A method.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(METHODS)}"
        raise ConfigError(f"unknown method {name!r}{hint}")
    method: Method = importlib.import_module(f"offrl.llm.methods.{name}").METHOD
    return method
