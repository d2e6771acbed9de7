"""O-DICE: a visitation-ratio method whose backward gradient gives way to its forward gradient.

    residuals:  e_f  = r + gamma (1 - d) min_j V'_j(s') - V(s)           forward: the gradient flows through V(s)
                e_b  = r + gamma (1 - d) V(s') - min_j V'_j(s)           backward: it flows through V(s')
    value:      g_f  = grad mean lam f*(e_f),   g_b = grad mean lam eta f*(e_b)
                g    = g_f + (g_b - c g_f),     c = <g_f, g_b> / <g_f, g_f> over all parameters of V at once
                step along g + grad mean (1 - lam) V(s)
    target:     V' moves by tau towards V after every update
    actor:      L_pi = mean min(max(0, e_f), 100) (-log pi(a | s)),      e_f from before the value step

f* is the convex conjugate of the f-divergence between visitations (see ``offrl.estimators.dice``). V is a pair: means
run over both, and the actor's weight is the average of the pair's two cut weights. ``gradient`` semi leaves g_b out;
true differentiates f*(r + gamma (1 - d) V(s') - V(s)) through both values, without target.

With ``imitation`` the data's rewards are not read. From demonstrations alone r = 0. With unlabelled data beside them,

    log ratio:  L_h = mean_E softplus(-h(s, a)) + mean_O softplus(h(s, a)),      O = unlabelled data and E together
                r   = h(s, a), cut at +-10; its optimum is log d_E / d_O, and 0 where O is E itself

and the linear term's mean runs over demonstrated states, so that V rises, and weights vanish, where no expert has been.

Source: Mao, Xu, Zhang & Zhan, arXiv:2402.00348; official code maoliyuan/ODICE-Pytorch.
Departures: the paper weighs the policy by the ratio w* = max(0, e / 2 + 1), the official code by max(0, e). We follow
the code; ``weight`` ratio is the paper's. The code's reward scale takes 1000-row chunks for episodes, which drift on
D4RL's 999-row ones; ours takes the whole episodes themselves (``legacy_chunking`` for the code's way). lam and eta per
dataset are in an appendix that we could not read: the presets leave them at the code's defaults. Imitation from
demonstrations alone is the official code's (there the last row of the trajectory leads into the next one; ours does
not). Imitation with unlabelled data is a reconstruction: the official code has none. The log-ratio reward is that of
SMODICE, arXiv:2202.02433, over state-action pairs, its classifier trained along with V; the linear term, which stands
for the initial states, is on E's as it is in the official imitation.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.data.join import join
from offrl.data.load import load_dataset
from offrl.errors import CheckpointError, ConfigError, DatasetError
from offrl.estimators.dice import Divergence, bellman_residual, conjugate, density_ratio_loss, ratio
from offrl.estimators.grad_surgery import flatten, project_out, unflatten
from offrl.estimators.likelihood import weighted_likelihood_loss
from offrl.nn.actor_critic import ActionBox, Metrics, check_common_settings
from offrl.nn.gaussian import GaussianActor
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp
from offrl.nn.normed import init_normed, normed_mlp
from offrl.nn.policy import GaussianPolicy
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, Problem

LOG_STD_RANGE = (-5.0, 2.0)  # official code
WEIGHT_LIMIT = 100.0
LOG_RATIO_LIMIT = 10.0
METRICS = (
    "value_loss",
    "value",
    "residual",
    "residual_min",
    "residual_max",
    "actor_loss",
    "zero_weights",
    "capped_weights",
)
PROJECTION_METRICS = ("forward_norm", "backward_norm", "cosine", "coefficient")
LOG_RATIO_METRICS = ("log_ratio_loss", "log_ratio_expert", "log_ratio")

Gradient = Literal["orthogonal", "semi", "true"]
Weight = Literal["relu_e", "ratio"]


@dataclass(frozen=True, kw_only=True)
class ODICEConfig:
    """Settings of O-DICE; defaults are those of the official code for MuJoCo locomotion."""

    lam: float = 0.6
    """Lambda in (0, 1): weight of the dual term; above 0.5 V lies above the mean, and more rows get weight 0."""
    eta: float = 1.0
    """Weight of the backward gradient (gradient orthogonal); 0 is semi."""
    gradient: Gradient = "orthogonal"
    """How V learns: orthogonal, semi (no backward gradient: S-DICE) or true (both, unprojected, no target)."""
    divergence: Divergence = "pearson"
    """The f-divergence: pearson (chi-square) or reverse_kl, whose exponential wants small rewards."""
    weight: Weight = "relu_e"
    """The policy's weights: relu_e is max(0, e) as in the official code, ratio is w*(e) as in the paper."""
    twin: bool = True
    """Two value networks, the smaller one as target; the official code has one on the hardest mazes."""
    layer_norm: bool = True
    """Layer norm before each ReLU of V."""
    tanh_mean: bool = False
    """Squash the policy's mean by tanh."""
    imitation: bool = False
    """Learn without rewards: the data are demonstrations, or unlabelled if expert_dataset is given."""
    expert_dataset: str = ""
    """Imitation: URI of the demonstrations, if they are apart from the unlabelled --dataset."""
    expert_episodes: int = 0
    """Imitation: how many episodes are demonstrations; 0 takes all of them."""
    expert_first: int = 0
    """Imitation: number of the first of them, counted from 0, among those of --dataset that --holdout leaves."""
    return_range_scaling: bool = False
    """Multiply rewards by 1000 / (best - worst episode return), as the official code does on locomotion."""
    legacy_chunking: bool = False
    """For that scale: returns of pieces of 1000 rows, or up to a termination, as in the official code."""
    discount: float = 0.99
    """Discount factor per step."""
    tau: float = 0.005
    """Step of the target values towards the online ones."""
    lr: float = 2e-4
    """Adam step size of all networks."""
    weight_decay: float = 1e-4
    """L2 penalty in the policy's Adam."""
    hidden: int = 256
    """Width of the two hidden layers of V."""
    policy_hidden: int = 1024
    """Width of the two hidden layers of the policy."""
    batch_size: int = 256
    """Transitions per update."""
    normalize_observations: bool = False
    """Subtract the data's mean and divide by its std + 1e-3."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this, then shifted."""
    reward_shift: float = 0.0
    """Added to the scaled rewards; AntMaze takes 3 (r - 1)."""

    def __post_init__(self) -> None:
        check_common_settings(self)
        if not 0.0 < self.lam < 1.0:
            raise ConfigError(f"lam must be in (0, 1), got {self.lam}; the official code uses 0.6")
        for name in ("eta", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.policy_hidden < 1:
            raise ConfigError(f"policy_hidden must be 1 or more, got {self.policy_hidden}")
        for name, kinds in (("gradient", Gradient), ("divergence", Divergence), ("weight", Weight)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(
                    f"{name} must be {' or '.join(get_args(kinds))}, got {getattr(self, name)!r}"
                )
        if (self.divergence, self.weight) == ("reverse_kl", "relu_e"):
            raise ConfigError("divergence reverse_kl goes with weight ratio, also in the official code")
        self._check_imitation()

    def _check_imitation(self) -> None:
        if self.expert_episodes < 0 or self.expert_first < 0:
            raise ConfigError("expert_episodes and expert_first must be 0 or more")
        if self.legacy_chunking and not self.return_range_scaling:
            raise ConfigError("legacy_chunking says how return_range_scaling counts, which is off")
        rewards = (self.return_range_scaling, self.reward_scale, self.reward_shift)
        if self.imitation and rewards != (False, 1.0, 0.0):
            raise ConfigError(
                "imitation reads no rewards: leave return_range_scaling, reward_scale and reward_shift at their "
                "defaults (presets for imitation begin with 'imitation-')"
            )
        if Path(self.expert_dataset).is_file():  # a run is resumed from any folder
            object.__setattr__(self, "expert_dataset", str(Path(self.expert_dataset).resolve()))


_LOCOMOTION = {"return_range_scaling": True}
_MAZE = {"layer_norm": False, "reward_scale": 3.0, "reward_shift": -3.0}
_IMITATION = {
    "imitation": True,
    "lam": 0.4,
    "layer_norm": False,
    "tanh_mean": True,
    "normalize_observations": True,
    "lr": 1e-4,
    "weight_decay": 1e-5,
}
PRESETS: dict[str, dict[str, Any]] = {  # official code: configs, main_odice_rl.py, run_offline_il.sh
    **{f"{robot}-": _LOCOMOTION for robot in ("halfcheetah", "hopper", "walker2d")},
    "antmaze-": _MAZE,
    "antmaze-umaze-diverse-": _MAZE | {"twin": False},
    "antmaze-large-": _MAZE | {"twin": False},
    "imitation-": _IMITATION,
    "imitation-walker2d-": _IMITATION | {"weight_decay": 1e-3},
}


def demonstrations(dataset: OfflineDataset, config: ODICEConfig) -> OfflineDataset:
    """With ``imitation``, what is learned from; the reward of a row says whether an expert acted: 1, or 0.

    Without ``expert_dataset`` the demonstrations are all there is, and their rewards are 0: log d_E / d_E.

    Raises:
        ConfigError: demonstrations without ``imitation``; a preset may still set it when settings are read.
        DatasetError: the demonstrations asked for do not exist, or do not fit the unlabelled data.
    """
    if not config.imitation:
        if config.expert_dataset or config.expert_episodes or config.expert_first:
            raise ConfigError("expert_dataset, expert_episodes and expert_first need --imitation")
        return dataset
    expert = load_dataset(config.expert_dataset) if config.expert_dataset else dataset
    count = config.expert_episodes or expert.num_episodes - config.expert_first
    if not 1 <= count <= expert.num_episodes - config.expert_first:
        raise DatasetError(
            f"there are no {max(count, 1)} demonstrations from episode {config.expert_first} on: the expert data have "
            f"{expert.num_episodes} episodes"
        )
    expert = expert.select(np.arange(config.expert_first, config.expert_first + count))
    if not config.expert_dataset:
        return _rewarded(expert, 0.0)
    return join([_rewarded(dataset, 0.0), _rewarded(expert, 1.0)])


def _rewarded(dataset: OfflineDataset, reward: float) -> OfflineDataset:
    fields = dataset.fields | {"rewards": np.full(dataset.num_steps, reward, dtype=np.float32)}
    return OfflineDataset(fields, dataset.episode_starts, dataset.metadata)


class ODICE:
    """Learner: value, target and actor, once each an update; before them the log ratio, if there is one."""

    def __init__(self, problem: Problem, config: ODICEConfig) -> None:
        self.config, self.normalizer, self.members = config, problem.normalizer, 1 + config.twin
        init, obs_dim, act_dim = problem.streams("init"), problem.obs_dim, problem.act_dim
        box = ActionBox(problem.action_low, problem.action_high)
        self.head = GaussianActor(box, *LOG_STD_RANGE, bounded=config.tanh_mean)
        sizes = (obs_dim, config.policy_hidden, config.policy_hidden, act_dim)
        actor = self.head.init(sizes, init)
        self.actor = Trainable(actor, config.lr, weight_decay=config.weight_decay)
        sizes = (obs_dim, config.hidden, config.hidden, 1)
        make = init_normed if config.layer_norm else init_mlp
        self.value = Trainable(make(sizes, self.members, init), config.lr, target=config.gradient != "true")
        self.networks = {"actor": self.actor, "value": self.value}
        self.metrics = METRICS + (PROJECTION_METRICS if config.gradient == "orthogonal" else ())
        self._value_gradients, self._actor_gradients = self.value_gradients, self.actor_gradients
        if problem.compile:
            self._value_gradients = compiled(self.value_gradients)
            self._actor_gradients = compiled(self.actor_gradients)
        self.log_ratio: LogRatio | None = None
        if config.expert_dataset:
            self.log_ratio = LogRatio(problem, config)
            self.networks["log_ratio"] = self.log_ratio.network
            self.metrics += LOG_RATIO_METRICS

    def update(self, batch: Batch) -> Metrics:
        """The log ratio, where rewards are learned; V and its target; the actor with the residuals from before."""
        rewards, starts = batch.rewards, batch.observations
        metrics: Metrics = {}
        if self.log_ratio is not None:
            rewards, starts, metrics = self.log_ratio.update(batch)
        value_grads, residuals, value_metrics = self._value_gradients(batch, rewards, starts)
        self.value.apply(value_grads)
        if self.value.target is not None:
            self.value.update_target(self.config.tau)
        grads, actor_metrics = self._actor_gradients(batch, residuals)
        self.actor.apply(grads)
        return metrics | value_metrics | actor_metrics

    def values(self, value: Params, observations: Tensor) -> Tensor:
        """V of every member: (S, B, O) -> (S, E, B)."""
        normed = self.config.layer_norm
        out = normed_mlp(value, observations, "before_relu") if normed else mlp(value, observations)
        return out.view(len(observations), self.members, -1)

    def target(self, observations: Tensor) -> Tensor:
        """The smallest target value, min_j V'_j(s), (S, 1, B)."""
        return self.values(self.value.target or [], observations).amin(dim=1, keepdim=True)

    def value_gradients(
        self, batch: Batch, rewards: Tensor, starts: Tensor
    ) -> tuple[list[Tensor], Tensor, Metrics]:
        """Gradients for V's parameters; also the residuals e_f (S, E, B) before the step.

        ``rewards`` (S, B) are the batch's or learned ones, ``starts`` (S, B, O) the states of the linear term.
        """
        lam = self.config.lam

        def linear(value: Params) -> tuple[Tensor, Metrics]:
            v = self.values(value, starts).mean(dim=(1, 2))
            return (1.0 - lam) * v.sum(), {"value": v}

        linear_grads, metrics = gradients(linear, self.value.params)
        grads, aux, projection = self.dual_gradients(batch, rewards)
        e = aux["residual"]
        metrics["value_loss"] = (1.0 - lam) * metrics["value"] + aux["dual"]
        metrics |= {"residual": e.mean(dim=(1, 2)), "residual_min": e.amin(dim=(1, 2))}
        metrics |= {"residual_max": e.amax(dim=(1, 2))} | projection
        return [a + b for a, b in zip(grads, linear_grads, strict=True)], e, metrics

    def dual_gradients(
        self, batch: Batch, rewards: Tensor
    ) -> tuple[Sequence[Tensor], dict[str, Tensor], Metrics]:
        """Gradients of lam f*, its residual (S, E, B) and mean, and how forward and backward gradients lie."""
        c, params, s, next_s = self.config, self.value.params, batch.observations, batch.next_observations

        def dual(v: Tensor, next_v: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            e = bellman_residual(rewards, batch.terminated, v, next_v, c.discount)
            per_seed = c.lam * conjugate(e, c.divergence).mean(dim=(1, 2))
            return per_seed.sum(), {"residual": e, "dual": per_seed}

        if c.gradient == "true":
            grads, aux = gradients(lambda v: dual(self.values(v, s), self.values(v, next_s)), params)
            return grads, aux, {}
        next_target = self.target(next_s)
        forward, aux = gradients(lambda v: dual(self.values(v, s), next_target), params)
        if c.gradient == "semi":
            return forward, aux, {}
        target = self.target(s)
        backward, _ = gradients(lambda v: (c.eta * dual(target, self.values(v, next_s))[0], {}), params)
        grads, projection = orthogonal(forward, backward, len(rewards))
        return grads, aux, projection

    def actor_gradients(self, batch: Batch, residuals: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_pi for the actor's parameters; the weights are constants."""
        weights = policy_weights(residuals, self.config)

        def loss(actor: Params) -> tuple[Tensor, Metrics]:
            per_seed = weighted_likelihood_loss(self.head.log_probs(actor, batch), weights.mean(dim=1))
            return per_seed.sum(), {"actor_loss": per_seed}

        grads, metrics = gradients(loss, self.actor.params)
        shares = {"zero_weights": weights == 0, "capped_weights": weights == WEIGHT_LIMIT}
        return grads, metrics | {name: x.float().mean(dim=(1, 2)) for name, x in shares.items()}

    def policy(self, seed: int = 0) -> GaussianPolicy:
        """Pi of one seed, acting on raw observations."""
        return self.head.policy(self.actor.params, seed, self.normalizer.mean, self.normalizer.std)

    def state_dict(self) -> dict[str, Any]:
        """Networks, target, optimizers; with a learned reward also its streams and which rows are the expert's."""
        state: dict[str, Any] = {name: net.state_dict() for name, net in self.networks.items()}
        return state if self.log_ratio is None else state | {"expert": self.log_ratio.streams_and_digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, net in self.networks.items():
            net.load_state_dict(state[name])
        if self.log_ratio is not None:
            self.log_ratio.restore(state["expert"])


def policy_weights(residuals: Tensor, config: ODICEConfig) -> Tensor:
    """The weight of each row in the policy's likelihood, cut at 100; any shape."""
    relu_e = config.weight == "relu_e"
    weights = residuals.clamp(min=0.0) if relu_e else ratio(residuals, config.divergence)
    return weights.clamp(max=WEIGHT_LIMIT)


def orthogonal(
    forward: tuple[Tensor, ...], backward: tuple[Tensor, ...], seeds: int
) -> tuple[tuple[Tensor, ...], Metrics]:
    """g_f + (g_b - c g_f), the backward gradient without what lies along the forward one; and how they lie."""
    g_f, g_b = flatten(forward, seeds), flatten(backward, seeds)
    rest, coefficient = project_out(g_b, g_f)
    norms = {"forward_norm": g_f.norm(dim=1), "backward_norm": g_b.norm(dim=1)}
    cosine = torch.cosine_similarity(g_f, g_b, dim=1)
    return tuple(unflatten(g_f + rest, forward)), norms | {"cosine": cosine, "coefficient": coefficient}


class LogRatio:
    """The learned reward of imitation: h(s, a), about log d_E / d_O, from the rows that the rewards mark with 1."""

    def __init__(self, problem: Problem, config: ODICEConfig) -> None:
        rows = torch.nonzero(problem.rewards > 0.5)[:, 0]
        if len(rows) == 0:
            raise DatasetError("no transition of the demonstrations is left; give longer episodes")
        self.observations, self.actions = problem.observations[rows], problem.actions[rows]
        sizes = (problem.obs_dim + problem.act_dim, config.hidden, config.hidden, 1)
        self.network = Trainable(init_mlp(sizes, 1, problem.streams("log_ratio_init")), config.lr)
        self.streams = problem.streams("expert")
        pairs = torch.cat((self.observations, self.actions), dim=1)
        self.digest = hashlib.sha256(pairs.cpu().numpy().tobytes()).hexdigest()
        self._ratio_gradients = self.ratio_gradients
        if problem.compile:
            self._ratio_gradients = compiled(self.ratio_gradients)

    def update(self, batch: Batch) -> tuple[Tensor, Tensor, Metrics]:
        """One step of h; then the batch's rewards (S, B) from it, and demonstrated states (S, B, O)."""
        shape, device = (1, batch.rewards.shape[1]), batch.rewards.device
        draws = [torch.randint(len(self.actions), shape, generator=g, device=device) for g in self.streams]
        rows = torch.cat(draws)
        expert = torch.cat((self.observations[rows], self.actions[rows]), dim=2)
        pairs = torch.cat((batch.observations, batch.actions), dim=2)
        grads, metrics = self._ratio_gradients(expert, pairs)
        self.network.apply(grads)
        with torch.no_grad():
            rewards = mlp(self.network.constant, pairs)[:, 0].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return rewards, self.observations[rows], metrics | {"log_ratio": rewards.mean(dim=1)}

    def ratio_gradients(self, expert: Tensor, pairs: Tensor) -> tuple[tuple[Tensor, ...], Metrics]:
        """Gradients of L_h for (s, a) of the expert and of all data, (S, B, O + A) each."""

        def loss(network: Params) -> tuple[Tensor, Metrics]:
            above, below = mlp(network, torch.cat((expert, pairs), dim=1))[:, 0].chunk(2, dim=1)
            per_seed = density_ratio_loss(above, below)
            return per_seed.sum(), {"log_ratio_loss": per_seed, "log_ratio_expert": above.mean(dim=1)}

        return gradients(loss, self.network.params)

    def streams_and_digest(self) -> dict[str, Any]:
        """What a resumed run needs besides the network."""
        return {"digest": self.digest, "streams": [g.get_state() for g in self.streams]}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what ``streams_and_digest`` returned; other demonstrations are refused (CheckpointError)."""
        if state["digest"] != self.digest:
            raise CheckpointError(
                "the demonstrations in expert_dataset changed since the run began; restore them"
            )
        for generator, saved in zip(self.streams, state["streams"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(
    ODICEConfig,
    ODICE,
    PRESETS,
    prepare=demonstrations,
    online="its weights are visitation ratios to the offline data, which played steps would change",
)
