"""CDSA: a score model of the data and inverse dynamics, which pull the actions of any policy back to the data.

RECONSTRUCTION, not verified against the authors' code: none was found, and of the paper only the abstract and the
beginning of the introduction could be read. Every formula and default below is ours.

    score:    z~ = z + sigma e,  z = [s, a],  e ~ N(0, I),  sigma one of L geometric levels
              L_S = mean (n(z~, sigma) - e)^2,  so that S = -n / sigma = grad_z log p_sigma(z)
    inverse:  L_I = mean (I(s, s' - s) - a)^2              terminal rows left out
    one step: L_f = mean (f(s, a) - (s' - s))^2            likewise

States are standardized by their mean and sd (at least 1e-3), displacements divided by their own sd, actions counted in
half-ranges of the box. I and f take a step every second update. A time-out's row counts only where the data have its
true successor. How policies are adjusted: ``offrl.diffusion.adjustment``; ``offrl eval SOURCE --adjust RUN``.

Source: Liu, Yang & Li, arXiv:2406.07541 (abstract); denoising score matching with one noise level as in
hjsuh94/score_po, arXiv:2306.14079; several levels: arXiv:1907.05600.
Departures: unknown, as the paper's equations could not be read. The one-step model is our addition.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.diffusion.adjustment import CDSAModel, Target, dynamics_sizes, level_input, score_network
from offrl.diffusion.training import AveragedTraining, ConstantAverage
from offrl.errors import ConfigError, DatasetError
from offrl.estimators.pathwise import squared_distance
from offrl.nn.actor_critic import ActionBox, check_optimization
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import Params, init_mlp, mlp
from offrl.nn.trainable import Trainable
from offrl.training.problem import Algorithm, Problem
from offrl.training.seeding import normal

DYNAMICS_EVERY = 2  # updates between steps of I and f: 1e5 of 2e5


@dataclass(frozen=True, kw_only=True)
class CDSAConfig:
    """Settings of the models of CDSA (reconstruction, not verified against the authors' code)."""

    target: Target = "joint"
    """joint: noise on states and actions; cond_action: on actions alone, no score of the states."""
    levels: int = 10
    """Noise levels (L), geometric; 1 trains sigma_max alone, and the network is not told it."""
    sigma_max: float = 0.5
    """Largest noise level, in standardized units."""
    sigma_min: float = 0.01
    """Smallest noise level, in standardized units; without effect where levels is 1."""
    hidden: int = 256
    """Width of the score network."""
    blocks: int = 3
    """Residual blocks of the score network."""
    dynamics_hidden: int = 256
    """Width of the two hidden layers of the inverse and the one-step model."""
    lr: float = 3e-4
    """Adam step size of the score network."""
    dynamics_lr: float = 3e-4
    """Adam step size of the inverse and the one-step model."""
    ema_decay: float = 0.999
    """What the averaged score weights keep of themselves every update."""
    batch_size: int = 256
    """Transitions per update."""

    def __post_init__(self) -> None:
        check_optimization(self)
        for name in ("levels", "blocks", "dynamics_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.target not in get_args(Target):
            raise ConfigError(f"target must be joint or cond_action, got {self.target!r}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def sigmas(self) -> Tensor:
        """The noise levels (L,), falling."""
        if self.levels == 1:
            return torch.tensor([self.sigma_max])
        shares = torch.arange(self.levels) / (self.levels - 1)
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** shares


PRESETS: dict[str, dict[str, Any]] = {"ant-": {"hidden": 512, "blocks": 4}}  # more than 100 observations


def data_statistics(
    observations: Tensor, next_observations: Tensor, terminated: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and sd of the states, sd of s' - s (O,), and the 99th percentile () of its length in such sds.

    Terminal rows count for the states alone. A displacement that is always the same has sd 0 and no length.

    Raises:
        DatasetError: every row is terminal.
    """
    valid = terminated == 0
    if not valid.any():
        raise DatasetError("inverse dynamics need rows with a successor, and every row is terminal")
    states = observations.double()
    mean, std = states.mean(0), states.std(0, unbiased=False).clamp(min=1e-3)
    steps = next_observations[valid].double() - states[valid]
    step_std = steps.std(0, unbiased=False)
    step_std = torch.where(step_std > 1e-6 * std, step_std, 0.0)  # float32 tells no smaller ones apart
    lengths = torch.where(step_std > 0, steps / step_std, 0.0).norm(dim=1)
    limit = lengths.kthvalue(max(1, round(0.99 * len(lengths)))).values
    return mean.float(), std.float(), step_std.float(), limit.float()


def valid_mean(errors: Tensor, valid: Tensor) -> Tensor:
    """Mean of squared errors (S, B, D) over the rows where ``valid`` (S, B) is 1, per seed (S,); 0 without any."""
    return (errors.square().mean(dim=2) * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1.0)


class CDSA:
    """Learner: one denoising step an update; every second update a step of inverse and one-step model."""

    metrics = ("denoising_loss", "inverse_loss", "ahead_loss")

    def __init__(self, problem: Problem, config: CDSAConfig) -> None:
        self.config, self.box = config, ActionBox(problem.action_low, problem.action_high)
        sizes = (problem.obs_dim, problem.act_dim)
        self.statistics = data_statistics(problem.observations, problem.next_observations, problem.terminated)
        self.net = score_network(*sizes, config.hidden, config.blocks, config.target, config.levels > 1)
        init = problem.streams("init")
        self.score = AveragedTraining(
            self.net.init(init), lambda _: config.lr, ConstantAverage(config.ema_decay, 1)
        )
        inverse, ahead = (init_mlp(s, 1, init) for s in dynamics_sizes(*sizes, config.dynamics_hidden))
        self.layers = len(inverse)
        self.dynamics = Trainable([*inverse, *ahead], config.dynamics_lr)
        self.sigmas, self.noise = config.sigmas().to(problem.device), problem.streams("noise")
        self._score = compiled(self.score_gradients) if problem.compile else self.score_gradients
        self._dynamics = compiled(self.dynamics_gradients) if problem.compile else self.dynamics_gradients

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One Adam step on the denoising error of the batch; every second call also one of I and f."""
        mean, std, step_std, _ = self.statistics
        states = (batch.observations - mean) / std
        actions = (batch.actions - self.box.center) / self.box.half
        rows = states.shape[1]
        drawn = [torch.randint(len(self.sigmas), (rows,), generator=g, device=g.device) for g in self.noise]
        sigma = self.sigmas[torch.stack(drawn)]
        noise = normal((rows, self.net.outputs), self.noise)
        grads, metrics = self._score(states, actions, sigma, noise)
        self.score.apply(grads)
        if self.score.updates % DYNAMICS_EVERY == 0:
            moved = batch.next_observations - batch.observations
            steps = torch.where(step_std > 0, moved / step_std, 0.0)
            grads, more = self._dynamics(states, actions, steps, 1.0 - batch.terminated)
            self.dynamics.apply(grads)
            metrics |= more
        return metrics

    def score_gradients(
        self, states: Tensor, actions: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_S at noise levels (S, B); ``noise`` (S, B, O + A), or (S, B, A) for the actions alone."""

        def loss(net: Params) -> tuple[Tensor, dict[str, Tensor]]:
            pushed = sigma[..., None] * noise
            if self.config.target == "cond_action":
                noisy = torch.cat((states, actions + pushed), dim=2)
            else:
                noisy = torch.cat((states, actions), dim=2) + pushed
            found = self.net(net, noisy, level_input(sigma) if self.net.levels else None)
            per_seed = squared_distance(found, noise)
            return per_seed.sum(), {"denoising_loss": per_seed}

        return gradients(loss, self.score.params)

    def dynamics_gradients(
        self, states: Tensor, actions: Tensor, steps: Tensor, valid: Tensor
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Gradients of L_I + L_f for displacements in their own sd, over the rows where ``valid`` (S, B) is 1."""

        def loss(nets: Params) -> tuple[Tensor, dict[str, Tensor]]:
            inverse, ahead = nets[: self.layers], nets[self.layers :]
            chosen = mlp(inverse, torch.cat((states, steps), dim=2)).transpose(1, 2).tanh()
            moved = mlp(ahead, torch.cat((states, actions), dim=2)).transpose(1, 2)
            inverse_loss = valid_mean(chosen - actions, valid)
            ahead_loss = valid_mean(moved - steps, valid)
            total = (inverse_loss + ahead_loss).sum()
            return total, {"inverse_loss": inverse_loss, "ahead_loss": ahead_loss}

        return gradients(loss, self.dynamics.params)

    def policy(self, seed: int = 0) -> CDSAModel:
        """The models of one seed, the score network's weights averaged; they do not act."""
        c, one = self.config, slice(seed, seed + 1)
        inverse, ahead = self.dynamics.constant[: self.layers], self.dynamics.constant[self.layers :]
        weights = [[p[one] for p in params] for params in (self.score.average, inverse, ahead)]
        return CDSAModel.from_params(
            *(weights, self.statistics, self.box.low, self.box.high),
            hidden=c.hidden,
            blocks=c.blocks,
            dynamics_hidden=c.dynamics_hidden,
            target=c.target,
            sigma_min=c.sigma_max if c.levels == 1 else c.sigma_min,
            sigma_max=c.sigma_max,
        )

    def state_dict(self) -> dict[str, Any]:
        """The networks, their optimizers and average, and the noise streams."""
        noise = [g.get_state() for g in self.noise]
        return {"score": self.score.state_dict(), "dynamics": self.dynamics.state_dict(), "noise": noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.score.load_state_dict(state["score"])
        self.dynamics.load_state_dict(state["dynamics"])
        for generator, saved in zip(self.noise, state["noise"], strict=True):
            generator.set_state(saved.cpu())


ALGORITHM = Algorithm(CDSAConfig, CDSA, PRESETS, acts=False, online="it models data and does not act")
