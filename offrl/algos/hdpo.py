"""HDPO: policies of inventory networks by gradients through the simulator, on recorded demand.

    s_{t+1}, c_t = step(s_t, pi(s_t), d_t)         demand d is recorded and no order changes it
    L = 1 / (|M| T S) sum_{i in M} sum_t c_t^i      all T periods and all nodes, M a minibatch of demand paths, S stores
    dL/dtheta by reverse mode over the whole rollout: no truncation, no discount, no value function

and, on the same simulator, paths and network, what it is compared with: z ~ Normal(logits(s), sigma^2), a = orders(z),

    score        sum_t grad log pi(z_t) R             R the whole return
    score_rtg    sum_t grad log pi(z_t) R_t           R_t from period t on
    score_batch  ... (R_t - mean of the batch at t)
    rloo         ... (R_t - mean of the other draws on the same demand path)
    a2c, ppo     generalized advantages less their mean at t, whitened; ppo clips ratios and passes several times

The policy kept is that of the least cost on development scenarios (warm-up left out); training stops when it
has not improved for ``patience`` updates.

Source: Alvo, Russo & Kanoria, arXiv:2306.11246; trainer.py of MatiasAlvo/Neural_inventory_control at commit 4d77c14.
Departures: minibatches are drawn by permutation of tensors; the initial weights are seeded; lengths are in updates, not
in epochs; the paper could not be read, so the competing estimators follow their own literature (parts of
offrl.estimators).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from offrl.envs.inventory import stochastic
from offrl.envs.inventory.network import Simulator
from offrl.envs.inventory.policies import POLICIES, DemandFacts, InventoryPolicy, make_policy
from offrl.envs.inventory.rules import advice
from offrl.envs.inventory.scenarios import Scenarios
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError, unused
from offrl.estimators.advantages import gae, next_values
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.rollouts import Rollouts
from offrl.nn.elu_mlp import EluMLP
from offrl.nn.trainable import Trainable
from offrl.training.ranks import ALONE, Ranks
from offrl.training.seeding import normal, streams

EstimatorName = Literal["auto", "pathwise", "score", "score_rtg", "score_batch", "rloo", "a2c", "ppo"]

PUBLISHED: dict[
    str, tuple[float, float]
] = {  # policy -> Adam step, gradient-norm bound (0: none), of the official files
    "base_stock": (0.5, 0.0),
    "capped_base_stock": (1.0, 0.0),
    "echelon_base_stock": (0.5, 0.0),
    "constant_order": (0.5, 0.0),
    "projected_level": (0.5, 0.0),
    "s_S": (0.5, 0.0),
    "mlp_one_store": (3e-3, 0.0),
    "mlp_serial": (1e-2, 0.0),
    "mlp_network": (3e-4, 0.0),
    "symmetry_aware": (1e-3, 0.0),
    "data_driven": (3e-3, 0.0),
    "transformed_nv": (3e-2, 0.0),
    "fixed_quantile": (3e-2, 0.0),
    "gnn": (1e-3, 1.0),
    "item_levels": (3e-3, 1.0),  # ours
}
READ_BY: dict[str, tuple[EstimatorName, ...]] = {  # setting -> the estimators that it means something for
    **dict.fromkeys(("truncation", "chunk", "checkpoint_periods", "straight_through"), ("pathwise",)),
    "sigma": ("score", "score_rtg", "score_batch", "rloo", "a2c", "ppo"),
    "draws": ("rloo",),
    "discount": ("score_rtg", "score_batch", "rloo", "a2c", "ppo"),
    **dict.fromkeys(("gae_lambda", "value_lr"), ("a2c", "ppo")),
    **dict.fromkeys(("clip_ratio", "passes", "minibatches"), ("ppo",)),
}


@dataclass(frozen=True, kw_only=True)
class HDPOConfig:
    """Settings of HDPO; defaults are those of the official code."""

    policy: str = "base_stock"
    """What is trained; 'offrl inventory list' shows all."""
    hidden: tuple[int, ...] = ()
    """Hidden widths of the policy's net; empty: the published ones."""
    rounds: int = 0
    """Rounds of messages, for gnn; 0: as many as the longest way through the network has lanes."""
    typed: bool = False
    """For gnn: a net of its own for each kind of node and lane."""
    normalize: bool = False
    """Feed dense nets stock divided by the mean demand; the published nets see raw units."""
    echelon: bool = True
    """For gnn: units of each node's demand, and orders that start from what a lane's target lacks; off as published."""
    lr: float | None = None
    """Adam step size; None: the published one of the policy."""
    max_grad_norm: float | None = None
    """Bound of a seed's gradient norm, 0 for none; None: the published one of the policy."""
    lr_decay: bool = False
    """Let the step size fall to 0 over all updates, along a cosine."""
    batch_size: int = 0
    """Demand paths per update; 0: as the setting says."""
    patience: int = 2000
    """Updates without a better development cost after which training stops; 0: never."""
    estimator: EstimatorName = "auto"
    """pathwise is HDPO; the others estimate the same gradient from sampled orders. auto: pathwise, but for networks
    whose cost jumps in the orders (fixed costs, least orders) rloo; item_levels, whose order sizes are not trained by
    gradients, stays with pathwise."""
    truncation: int = 0
    """Cut the gradient's way through the state every so many periods; 0: never. Biased."""
    chunk: int = 0
    """Paths simulated at a time, which bounds memory; the gradient is the batch's. 0: all."""
    checkpoint_periods: int = 0
    """Keep states of every so many periods only and simulate again for the gradient; 0: keep all. Exact."""
    straight_through: bool = False
    """Round orders to whole units in training too, and let gradients pass the rounding. Biased."""
    sigma: float = 0.5
    """First standard deviation of the logits' noise, which is then learned; not for pathwise."""
    draws: int = 2
    """Samples on each demand path, for rloo."""
    discount: float = 1.0
    """Of rewards to come, for all estimators that look at those: not pathwise and score."""
    gae_lambda: float = 0.95
    """Trace of generalized advantages, for a2c and ppo."""
    clip_ratio: float = 0.2
    """Clip of probability ratios, for ppo."""
    passes: int = 4
    """Passes over each sampled batch, for ppo."""
    minibatches: int = 4
    """Steps a pass, for ppo."""
    value_lr: float = 1e-3
    """Adam step size of the value net, for a2c and ppo."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"unknown policy {self.policy!r}; there are {', '.join(POLICIES)}")
        for name in ("sigma", "draws", "passes", "minibatches", "value_lr", "clip_ratio"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("batch_size", "patience", "truncation", "chunk", "checkpoint_periods"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.normalize and self.policy == "gnn":
            raise ConfigError("normalize is for dense nets; echelon gives gnn units of its own")
        if self.policy != "gnn":
            unused(self, f"with policy {self.policy}", "rounds", "typed", "echelon")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        if self.truncation and self.checkpoint_periods and self.truncation % self.checkpoint_periods:
            raise ConfigError("truncation must be a multiple of checkpoint_periods")
        if self.estimator == "rloo" and self.draws < 2:
            raise ConfigError("rloo compares draws on one demand path: draws must be 2 or more")

    @property
    def step_size(self) -> float:
        """The Adam step size."""
        return PUBLISHED.get(self.policy, (1e-3, 0.0))[0] if self.lr is None else self.lr

    @property
    def norm_bound(self) -> float:
        """The bound of the gradient's norm; 0: none."""
        published = PUBLISHED.get(self.policy, (1e-3, 0.0))[1]
        return published if self.max_grad_norm is None else self.max_grad_norm


def resolved(config: HDPOConfig, network: Network) -> HDPOConfig:
    """The config with the estimator that ``auto`` means on a network."""
    if config.estimator != "auto":
        return config
    best = "pathwise" if config.policy == "item_levels" else advice(network)[0]
    return replace(config, estimator=best)  # type: ignore[arg-type]


def estimators(config: HDPOConfig) -> Estimator:
    """The score-function estimator of a config, from the parts of the shared core."""
    to_go = ("returns_to_go", {"discount": config.discount})
    gae = ("gae", {"discount": config.discount, "lam": config.gae_lambda})
    advantage: dict[str, Any] = {
        "score": stochastic.total_return,
        "score_rtg": to_go,
        "score_batch": [to_go, stochastic.minus_group_mean],
        "rloo": [to_go, stochastic.minus_other_draws],
        "a2c": [gae, stochastic.minus_group_mean, stochastic.whiten_groups],
        "ppo": [gae, stochastic.minus_group_mean, stochastic.whiten_groups],
    }
    if config.estimator == "ppo":
        clip = ("ppo_clip", {"low": config.clip_ratio, "high": config.clip_ratio})
        return compose(advantage=advantage["ppo"], mask=clip)
    aggregation: Any = "token-mean" if config.estimator == "a2c" else "seq-mean-token-sum"
    return compose(advantage=advantage[config.estimator], denominator="current", aggregation=aggregation)


def rollout_cost(
    policy: Callable[..., Tensor],
    scenarios: Scenarios,
    *,
    truncation: int = 0,
    checkpoint_periods: int = 0,
    straight_through: bool = False,
) -> Tensor:
    """Discounted cost of all nodes and periods of each scenario, (B,), with its gradient.

    Args:
        policy: observation -> orders.
        scenarios: all their periods are simulated.
        truncation: detach the state every so many periods; 0: never.
        checkpoint_periods: recompute in stretches of so many periods; 0: keep everything.
        straight_through: round orders, with the gradient of the identity.
    """
    simulator = scenarios.simulator()

    def stretch(state: Any, first: int, last: int) -> tuple[Any, Tensor]:
        return _simulate(policy, simulator, scenarios, state, first, last, straight_through)

    state, total = simulator.start(scenarios.initial), torch.zeros((), device=scenarios.initial.device)
    periods, length = (
        scenarios.periods,
        min(x for x in (truncation, checkpoint_periods, scenarios.periods) if x),
    )
    for first in range(0, periods, length):
        last = min(first + length, periods)
        if truncation and first and first % truncation == 0:
            state = _detached(state)
        if checkpoint_periods:
            state, cost = checkpoint(stretch, state, first, last, use_reentrant=False)
        else:
            state, cost = stretch(state, first, last)
        total = total + cost
    return total.sum(1)


def _simulate(
    policy: Callable[..., Tensor], simulator: Simulator, scenarios: Scenarios, state: Tensor, first: int, last: int,
    straight_through: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Periods ``first`` to ``last``: the state after them and their discounted costs, (B, N)."""
    discount = scenarios.network.discount
    costs = []
    for t in range(first, last):
        orders = policy(scenarios.observe(simulator.stock(state), t))
        if straight_through:
            orders = orders + (orders.round() - orders).detach()
        state, cost = simulator.step(state, orders, scenarios.demands[t + scenarios.history])
        costs.append(cost if discount == 1.0 else cost * discount**t)
    return state, torch.stack(costs).sum(0)


def _detached(state: Any) -> Any:
    """A state without its history: a tensor, or a named tuple of them."""
    return state.detach() if isinstance(state, Tensor) else type(state)(*(x.detach() for x in state))


class Permutations:
    """Minibatches of row numbers: every seed shuffles all rows, takes them in turn, and shuffles again.

    Args:
        rows: all there are.
        batch_size: rows a seed takes, at most ``rows``; the last batch of an epoch may be short.
        seeds: S.
        first: a seed's rows are its first so many, and its batches never short: they go on in the next
            shuffle, which repeats rows where there are fewer than a batch. Empty: all rows.
    """

    def __init__(self, rows: int, batch_size: int, seeds: int, first: Sequence[int] = ()) -> None:
        self.size, self.batch_size, self.seeds = rows, min(batch_size, rows), seeds
        if first and (len(first) != seeds or not all(1 <= n <= rows for n in first)):
            raise ConfigError(
                f"first_paths must be a number from 1 to {rows} for each of {seeds} seeds, got {tuple(first)}"
            )
        self.first, self.at = tuple(first), rows
        self.order: Tensor | list[Tensor] = torch.empty(seeds, 0, dtype=torch.int64)
        if first:
            self.order = [torch.empty(0, dtype=torch.int64)] * seeds

    def __len__(self) -> int:
        return self.size

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """(S, B) int64."""
        if isinstance(self.order, list):
            return torch.stack([self._own(k, g) for k, g in enumerate(generators)])
        if self.at >= self.size:
            drawn = [torch.randperm(self.size, generator=g, device=g.device) for g in generators]
            self.order, self.at = torch.stack(drawn), 0
        rows = self.order[:, self.at : self.at + self.batch_size]
        self.at += self.batch_size
        return rows

    def _own(self, seed: int, g: torch.Generator) -> Tensor:
        """The next rows of a seed with its own number of them."""
        assert isinstance(self.order, list)
        left = self.order[seed].to(g.device)
        while len(left) < self.batch_size:
            left = torch.cat([left, torch.randperm(self.first[seed], generator=g, device=g.device)])
        self.order[seed] = left[self.batch_size :]
        return left[: self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands."""
        order = list(self.order) if isinstance(self.order, list) else self.order
        return {"order": order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        order = state["order"]
        self.order, self.at = list(order) if isinstance(order, list) else order.clone(), state["at"]


class HDPO:
    """Learner: one gradient step an update (several with ppo).

    Args:
        train: demand paths.
        facts: of the demand, for the policy.
        config: settings.
        seeds: one policy a seed, trained side by side.
        steps: updates in all, for ``lr_decay``.
        ranks: processes that share every batch.
    """

    metrics = ("cost", "gradient_norm")

    def __init__(
        self, train: Scenarios, facts: DemandFacts, config: HDPOConfig, seeds: Sequence[int], steps: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        config = resolved(config, train.network)
        for name, readers in READ_BY.items():
            if config.estimator not in readers:
                unused(config, f"with estimator {config.estimator}", name)
        if ranks.size > 1 and config.estimator != "pathwise":
            raise ConfigError(f"several processes share pathwise gradients only, not {config.estimator}")
        self.train, self.config, self.steps, self.updates, self.ranks = train, config, steps, 0, ranks
        device = train.initial.device
        options: dict[str, Any] = {"hidden": config.hidden} if config.hidden else {}
        options |= {k: getattr(config, k) for k in ("rounds", "typed", "normalize") if getattr(config, k)}
        options |= {"echelon": config.echelon} if config.policy == "gnn" else {}
        self.net = make_policy(config.policy, train.network, facts, streams(seeds, "init", device), **options)
        params: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
        if not self.net.trainable or not params:
            raise ConfigError(
                f"policy {config.policy} has nothing to train; 'offrl inventory eval' measures it"
            )
        self.net.prepare(train)
        ranks.copy(self.net.state_dict().values())
        self.noise = streams(seeds, "noise", device)
        self.log_std: Tensor | None = None
        self.values: Trainable | None = None
        if config.estimator != "pathwise":
            self._stochastic(seeds)
            params = [*params, self.log_std]  # type: ignore[list-item]
        self.trained = Trainable(params, config.step_size)

    def _stochastic(self, seeds: Sequence[int]) -> None:
        """Noise and, where wanted, the value net."""
        device = self.train.initial.device
        seen = self.train.rows(torch.zeros(self.net.copies, dtype=torch.int64, device=device)).observe
        with torch.no_grad():
            width = self.net.logits(seen(self.train.initial[:1].expand(self.net.copies, -1, -1), 0)).shape[1]
        start = math.log(self.config.sigma)
        self.log_std = torch.full((len(seeds), width), start, device=device, requires_grad=True)
        self.estimator = estimators(self.config)
        if self.config.estimator in ("a2c", "ppo"):
            self.value_scale = 1.0 / (1.0 + float(self.train.initial.abs().mean()))
            features = self.train.initial[0].numel() + 1
            self.critic = EluMLP((features, 64, 64, 1), streams(seeds, "critic", device))
            self.values = Trainable(list(self.critic.layers), self.config.value_lr)

    def update(self, batch: Tensor) -> dict[str, Tensor]:
        """One update on the paths ``batch``, (S, B) row numbers of the training scenarios."""
        config = self.config
        if config.lr_decay:
            self.trained.lr = config.step_size * 0.5 * (1 + math.cos(math.pi * self.updates / self.steps))
        self.updates += 1
        if config.estimator == "pathwise":
            grads, cost = self._pathwise(batch)
            return {"cost": cost, "gradient_norm": self._step(grads)}
        return self._score(batch)

    def _pathwise(self, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradient of the batch's loss, summed over seeds; cost (S,)."""
        config, (seeds, count) = self.config, batch.shape
        scale = 1.0 / (count * self.train.periods * self.train.network.stores)
        own = self.ranks.share(batch)
        grads: list[Tensor] = []
        cost = torch.zeros(seeds, device=batch.device)
        for first in range(0, own.shape[1], config.chunk or count):
            rows = own[:, first : first + (config.chunk or count)].flatten()
            costs = rollout_cost(
                self.net, self.train.rows(rows), truncation=config.truncation,
                checkpoint_periods=config.checkpoint_periods, straight_through=config.straight_through,
            )  # fmt: skip
            part = torch.autograd.grad(costs.sum() * scale, self.trained.params, materialize_grads=True)
            grads = [a + b for a, b in zip(grads, part, strict=True)] if grads else list(part)
            cost += costs.detach().unflatten(0, (seeds, -1)).sum(1) * scale
        *grads, cost = self.ranks.sum([*(grads or map(torch.zeros_like, self.trained.constant)), cost])
        return grads, cost

    @torch.no_grad()
    def _step(self, grads: Sequence[Tensor]) -> Tensor:
        """Bound each seed's gradient norm and make the Adam step; returns the norms before, (S,)."""
        norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        if bound := self.config.norm_bound:
            factor = (bound / (norm + 1e-6)).clamp(max=1.0)
            grads = [g * factor.view(-1, *(1,) * (g.ndim - 1)) for g in grads]
        self.trained.apply(grads)
        return norm

    def _score(self, batch: Tensor) -> dict[str, Tensor]:
        """An update from sampled orders."""
        config, seeds = self.config, len(batch)
        draws = config.draws if config.estimator == "rloo" else 1
        rows = batch.repeat_interleave(draws, 1)
        scenarios = self.train.rows(rows.flatten())
        sampled = stochastic.sample(self.net, self._log_std(rows.shape[1]), scenarios, self._noise)
        seed = torch.arange(seeds, device=batch.device).repeat_interleave(rows.shape[1])
        groups = seed
        if draws > 1:
            groups = torch.arange(batch.numel(), device=batch.device).repeat_interleave(draws)
        data = Rollouts(rewards=sampled.rewards, group_ids=groups, old_log_probs=sampled.log_probs.detach())
        if self.values is not None:
            data = self._valued(data, sampled)
        data = self.estimator.prepare(data)
        cost = -sampled.rewards.sum(1).unflatten(0, (seeds, -1)).mean(1)
        if config.estimator == "ppo":
            norm = self._passes(data, scenarios, sampled, rows.shape[1])
        else:
            loss = self.estimator.loss(sampled.log_probs, data) * seeds
            norm = self._step(torch.autograd.grad(loss, self.trained.params, materialize_grads=True))
        if self.values is not None and config.estimator == "a2c":
            self._fit_values(data, sampled, torch.arange(len(seed), device=batch.device))
        return {"cost": cost, "gradient_norm": norm}

    def _log_std(self, rows: int) -> Tensor:
        assert self.log_std is not None
        return self.log_std[:, None].expand(-1, rows, -1).flatten(0, 1)

    def _noise(self, shape: tuple[int, int]) -> Tensor:
        return normal((shape[0] // self.net.copies, shape[1]), self.noise).flatten(0, 1)

    def _value(self, stocks: Tensor) -> Tensor:
        """V of the first T states (T, B, N, K), which also sees how many periods are left: (B, T)."""
        seeds = self.net.copies
        periods, rows = stocks.shape[:2]
        left = 1.0 - torch.arange(periods, device=stocks.device) / self.train.periods
        x = torch.cat([stocks.flatten(2) * self.value_scale, left[:, None, None].expand(-1, rows, 1)], -1)
        x = x.unflatten(1, (seeds, -1)).transpose(0, 1).flatten(1, 2)
        values: Tensor = self.critic(x.transpose(1, 2))
        return values.view(seeds, periods, -1).transpose(1, 2).reshape(rows, periods)

    @torch.no_grad()
    def _valued(self, data: Rollouts, sampled: stochastic.Sampled) -> Rollouts:
        now, c = self._value(torch.stack(sampled.stocks[:-1])), self.config
        following = next_values(now)  # nothing counts after the last period
        assert data.rewards is not None
        better = gae(data.rewards, now, following, discount=c.discount, lam=c.gae_lambda)
        return data.replace(values=now, next_values=following, returns=now + better)

    def _fit_values(self, data: Rollouts, sampled: stochastic.Sampled, rows: Tensor) -> None:
        """One step of squared error towards the returns of some rows."""
        assert self.values is not None
        assert data.returns is not None
        target = data.returns[rows]
        stocks = torch.stack(sampled.stocks[:-1])[:, rows]
        self.values.minimize((self._value(stocks) - target).square().mean() * self.net.copies)

    def _passes(self, data: Rollouts, scenarios: Scenarios, sampled: stochastic.Sampled, rows: int) -> Tensor:
        """PPO: several passes in minibatches of whole paths."""
        norm = torch.zeros(self.net.copies, device=data.rewards.device)  # type: ignore[union-attr]
        offsets = torch.arange(self.net.copies, device=norm.device)[:, None] * rows
        for _ in range(self.config.passes):
            order = torch.stack([torch.randperm(rows, generator=g, device=g.device) for g in self.noise])
            for part in (order + offsets).chunk(self.config.minibatches, 1):
                index = part.flatten()
                some = stochastic.Sampled(
                    sampled.rewards[index], sampled.log_probs[index],
                    [x[index] for x in sampled.stocks], [z[index] for z in sampled.wishes],
                )  # fmt: skip
                now = stochastic.recomputed(
                    self.net, self._log_std(part.shape[1]), scenarios.rows(index), some
                )
                loss = self.estimator.loss(now, data.rows(index)) * self.net.copies
                norm = self._step(torch.autograd.grad(loss, self.trained.params, materialize_grads=True))
                self._fit_values(data, sampled, index)
        return norm

    def policy(self, seed: int = 0) -> InventoryPolicy:
        """The current policy of one seed, a copy."""
        return self.net.single(seed)

    def state_dict(self) -> dict[str, Any]:
        """Policy, optimizers, noise streams, count of updates."""
        learned = {name for name, parameter in self.net.named_parameters() if parameter.requires_grad}
        held = {name: value.clone() for name, value in self.net.state_dict().items() if name not in learned}
        return {
            "trained": self.trained.state_dict(),
            "held": held,
            "values": None if self.values is None else self.values.state_dict(),
            "noise": [g.get_state() for g in self.noise],
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.trained.load_state_dict(state["trained"])
        self.net.load_state_dict(state.get("held", {}), strict=False)
        if self.values is not None:
            self.values.load_state_dict(state["values"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())
        self.updates = state["updates"]


def gradient_spread(
    policy: InventoryPolicy, scenarios: Scenarios, config: HDPOConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean gradient and summed variance of one demand path's gradient, for the estimator of ``config``.

    No value net, no whitening: the estimators are unbiased but for those. A path of rloo is simulated ``draws`` times.

    Args:
        policy: one seed.
        scenarios: n of them; each gets its own copy of the parameters.
        config: ``estimator``, ``sigma``, ``draws``, ``discount``.
        generator: of the noise.

    Returns:
        (P,) over all parameters in order, and a scalar.
    """
    n, config = len(scenarios), resolved(config, scenarios.network)
    own = stochastic.per_scenario(policy, n)
    params = [p for p in own.parameters() if p.requires_grad]
    if config.estimator == "pathwise":
        loss = rollout_cost(own, scenarios).sum() / (scenarios.periods * scenarios.network.stores)
        return stochastic.spread(list(torch.autograd.grad(loss, params, materialize_grads=True)))
    if config.estimator in ("a2c", "ppo"):
        raise ConfigError(
            "gradient_spread measures estimators without a value net: score, score_rtg, score_batch, rloo"
        )
    draws = config.draws if config.estimator == "rloo" else 1
    rows = torch.arange(n, device=scenarios.initial.device).repeat_interleave(draws)

    def noise(shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=scenarios.initial.dtype)

    log_std = scenarios.initial.new_full((1, 1), math.log(config.sigma))
    sampled = stochastic.sample(own, log_std, scenarios.rows(rows), noise)
    groups = rows if draws > 1 else torch.zeros_like(rows)
    estimator = estimators(config)
    data = estimator.prepare(Rollouts(rewards=sampled.rewards, group_ids=groups))
    loss = estimator.loss(sampled.log_probs, data) * n
    return stochastic.spread(list(torch.autograd.grad(loss, params, materialize_grads=True)))
