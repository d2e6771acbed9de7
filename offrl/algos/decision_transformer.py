"""Decision Transformer: a causal transformer clones actions given the states so far and the return still to come.

    input:   windows of L steps of an episode: R_t, s_t, a_t;   R_t = sum of the rewards from t to the episode's end
    loss:    L = mean over the steps and action dims of (tanh(f(R_1, s_1, a_1, ..., R_t, s_t)) - a_t)^2
    acting:  R_1 = target_return, then R_{t+1} = R_t - r_t

AdamW on gradients cut to norm 0.25, the step size rising linearly over the first ``warmup_steps``. Windows start at a
step drawn uniformly from all; steps beyond the episode's end do not count. Actions are in units of the half-range.

Source: Chen et al., arXiv:2106.01345; official code kzl/decision-transformer (gym).
Departures: the official code fills short windows up at their front, ours at their end, which its causal attention
cannot tell apart. States are divided by std + 1e-3, there by std + 1e-6. Its default data end before an unfinished
last episode, ours too. Its evaluation reports two targets, of which the presets hold the higher one.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.decision_transformer import (
    DecisionTransformerPolicy,
    Sizes,
    dropout_masks,
    init_transformer,
    transformer,
)
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, Problem

GRADIENT_LIMIT = 0.25


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig:
    """Settings of the Decision Transformer; defaults are those of the official code for locomotion."""

    target_return: float | None = None
    """Return that the policy is asked for; None is the best return of the data."""
    return_scale: float = 1000.0
    """Returns are divided by this: choose about a third of the best return."""
    context: int = 20
    """Steps that the transformer sees (L)."""
    max_episode_steps: int = 1000
    """Steps of an episode that are told apart; later ones count as the last."""
    layers: int = 3
    """Transformer layers."""
    heads: int = 1
    """Attention heads; they must divide hidden."""
    dropout: float = 0.1
    """Dropout rate of inputs, attention and residual branches while training."""
    lr: float = 1e-4
    """AdamW step size after the warm-up."""
    weight_decay: float = 1e-4
    """Every parameter shrinks by lr times this each update."""
    warmup_steps: int = 10_000
    """Updates over which the step size rises to lr."""
    hidden: int = 128
    """Width of the tokens."""
    batch_size: int = 64
    """Windows per update."""
    normalize_observations: bool = True
    """Subtract the data's mean and divide by its std + 1e-3."""

    def __post_init__(self) -> None:
        check_optimization(self)
        if self.target_return is not None and not math.isfinite(self.target_return):
            raise ConfigError(f"target_return must be a finite number or None, got {self.target_return}")
        if self.return_scale <= 0:
            raise ConfigError(f"return_scale must be above 0, got {self.return_scale}")
        for name in ("context", "max_episode_steps", "layers", "heads", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.hidden % self.heads:
            raise ConfigError(f"heads must divide hidden, got {self.heads} and {self.hidden}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay must be 0 or more, got {self.weight_decay}")


PRESETS: dict[str, dict[str, Any]] = {  # gym/experiment.py of kzl/decision-transformer
    "hopper-": {"target_return": 3600.0},
    "halfcheetah-": {"target_return": 12_000.0},
    "walker2d-": {"target_return": 5000.0},
}


def finished_episodes(dataset: OfflineDataset, config: DecisionTransformerConfig) -> OfflineDataset:
    """The data without a last episode in which recording stopped: its returns-to-go would be too low."""
    if dataset.num_episodes == 1 or not dataset.last_is_cut:
        return dataset
    return dataset.select(np.arange(dataset.num_episodes - 1))


def action_loss(predicted: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over action dims and the steps that count: (S, B, L, A) twice, (S, B, L) -> (S,)."""
    per_step = (predicted - actions).square().mean(dim=3) * valid
    return per_step.sum(dim=(1, 2)) / valid.sum(dim=(1, 2))


def limit_norm(grads: tuple[Tensor, ...], limit: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients (S, ...) scaled down, each seed's together, to norm ``limit`` where it is above; the norms (S,)."""
    squares = [g.flatten(1).square().sum(dim=1) for g in grads]
    norm = torch.stack(squares).sum(dim=0).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return tuple(g * scale.view(-1, *(1,) * (g.dim() - 1)) for g in grads), norm


class DecisionTransformer:
    """Learner: one regression step on windows an update."""

    metrics = ("action_loss", "gradient_norm")

    def __init__(self, problem: Problem, config: DecisionTransformerConfig) -> None:
        if problem.episode is None or problem.returns_to_go is None:
            raise ValueError("the Decision Transformer needs episodes and returns-to-go")
        self.config, self.normalizer = config, problem.normalizer
        self.box = ActionBox(problem.action_low, problem.action_high)
        self.sizes = Sizes(
            *(problem.obs_dim, problem.act_dim),
            max_steps=config.max_episode_steps,
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
        )
        first = problem.episode.diff(prepend=problem.episode[:1] - 1) != 0
        best = float(problem.returns_to_go[first].max())
        self.target_return = best if config.target_return is None else config.target_return
        self.net = Trainable(init_transformer(self.sizes, problem.streams("init")), config.lr)
        self.noise, self.updates = problem.streams("noise"), 0
        self._gradients = compiled(self.gradients) if problem.compile else self.gradients

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One AdamW step towards the windows' actions."""
        config, masks = self.config, None
        if config.dropout:
            rows, length = batch.actions.shape[1:3]
            masks = dropout_masks(self.sizes, rows, length, config.dropout, self.noise)
        grads, metrics = self._gradients(batch, masks)
        self.net.lr = config.lr * min((self.updates + 1) / config.warmup_steps, 1.0)
        torch._foreach_mul_(self.net.constant, 1.0 - self.net.lr * config.weight_decay)
        self.net.apply(grads)
        self.updates += 1
        return metrics

    def gradients(
        self, batch: Batch, masks: list[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L, cut to their norm's limit; ``masks`` are the dropped parts."""
        if batch.steps is None or batch.valid is None or batch.returns_to_go is None:
            raise ValueError("the Decision Transformer needs windows with returns-to-go")
        valid, returns = batch.valid, batch.returns_to_go / self.config.return_scale
        steps = batch.steps.clamp(max=self.sizes.max_steps - 1)
        actions = (batch.actions - self.box.center) / self.box.half

        def loss(net: Params) -> tuple[Tensor, dict[str, Tensor]]:
            f = transformer(net, self.sizes.heads, returns, batch.observations, actions, steps, masks)
            per_seed = action_loss(f.tanh(), actions, valid)
            return per_seed.sum(), {"action_loss": per_seed}

        grads, metrics = gradients(loss, self.net.params)
        grads, norm = limit_norm(grads, GRADIENT_LIMIT)
        return grads, metrics | {"gradient_norm": norm}

    def policy(self, seed: int = 0) -> DecisionTransformerPolicy:
        """The policy of one seed, acting on raw observations and asking for the target return."""
        box, normalizer = self.box, self.normalizer
        return DecisionTransformerPolicy.from_params(
            [p[seed] for p in self.net.constant],
            self.sizes,
            *(box.low, box.high, normalizer.mean, normalizer.std),
            context=self.config.context,
            target_return=self.target_return,
            return_scale=self.config.return_scale,
        )

    def state_dict(self) -> dict[str, Any]:
        """The network, its optimizer, the update counter and the dropout streams."""
        noise = [g.get_state() for g in self.noise]
        return {"net": self.net.state_dict(), "updates": self.updates, "noise": noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.net.load_state_dict(state["net"])
        self.updates = state["updates"]
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(
    DecisionTransformerConfig,
    DecisionTransformer,
    PRESETS,
    prepare=finished_episodes,
    returns_to_go=True,
    windows=True,
    online="it trains on windows of whole episodes; the online decision transformer is a method of its own",
)
