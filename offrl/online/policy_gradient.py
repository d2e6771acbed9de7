"""What policy-gradient methods on whole episodes share, as a stable-baselines3 algorithm.

An iteration: the method names the parameter vectors to sample from; whole episodes are played with each; the method
makes a direction of them; one step follows. The policy that acts, is saved and is evaluated is always theta, never a
point that was only sampled from. There is no bootstrapping: an episode that a time limit cuts counts as it is.

Where log_std is below its bound, after a step or at a point to sample from, it is set to it: the projection on the
parameters that are allowed. Directions are not changed; a step is then shorter than gamma_t, never longer.

All randomness of an iteration comes from streams named by (seed, iteration), and every iteration resets its
environments: a model that is saved and loaded goes on as if it had not been.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import safe_mean
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from offrl.errors import ConfigError
from offrl.estimators import hvp, transforms
from offrl.online.policies import EpisodicPolicy
from offrl.online.settings import FixedSettings
from offrl.training.seeding import stream

METRICS = ("direction_norm", "step_size", "eta", "std", "episode_return")


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """Settings of every method here."""

    step_size: float = 0.1
    """gamma_0, the size of the first step; later ones fall with the iteration."""
    eta: float = 1.0
    """eta_0, weight of the first gradient in the moving average; later ones fall with the iteration. In (0, 1]."""
    discount: float = 0.99
    """Per step, counted from the start of an episode."""
    trajectories: int = 10
    """Episodes per gradient."""
    baseline: bool = True
    """Subtract from returns-to-go their mean at the same time over the other episodes; needs two of them."""
    hidden: int = 64
    """Units of each of the two tanh layers."""
    log_std: float = 0.0
    """First log standard deviation of the actions."""
    log_std_min: float = -3.0
    """Its lower bound, kept by projection after every step."""
    fixed_std: bool = False
    """Keep it at its first value."""

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ConfigError(
                f"eta must be in (0, 1], got {self.eta}: it is the first weight of a moving average"
            )
        if not self.step_size > 0:
            raise ConfigError(f"step_size must be above 0, got {self.step_size}")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount must be in (0, 1], got {self.discount}")
        if self.trajectories < 1 or self.hidden < 1:
            raise ConfigError("trajectories and hidden must be 1 or more")
        if self.log_std < self.log_std_min:
            raise ConfigError(f"log_std {self.log_std} is below log_std_min {self.log_std_min}")


@dataclass(frozen=True)
class Episodes:
    """N whole episodes, M steps one after the other."""

    features: Tensor  # (M, F), what the network saw
    actions: Tensor  # (M, A) unclipped, or (M,)
    psi: Tensor  # (M,), discounted rewards-to-go, less the baseline
    episode: Tensor  # (M,) int64


class PolicyGradientAlgorithm(FixedSettings, BaseAlgorithm):
    """A stable-baselines3 algorithm; the subclasses say where to sample and what the direction is.

    Args:
        policy: ``MlpPolicy``.
        env: an environment with flat observations, and a box of actions or a number of them; or a VecEnv.
        policy_kwargs: arguments of ``EpisodicPolicy``; they win over the settings of the network.
        stats_window_size, tensorboard_log, verbose, device, seed: as in stable-baselines3.
        _init_setup_model: build the networks.
        **settings: the fields of ``config_class``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": EpisodicPolicy}
    config_class: ClassVar[type[PolicyGradientConfig]] = PolicyGradientConfig
    settings: PolicyGradientConfig
    policy: EpisodicPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: Any = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        seed: int | None = None,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        self.settings = self.settings_of(settings)
        super().__init__(
            self.policy_of(policy),
            env,
            learning_rate=self.settings.step_size,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
        )
        self.stream_seed: int | None = None
        if _init_setup_model:
            self._setup_model()

    @abstractmethod
    def points(self, theta: Tensor) -> list[Tensor]:
        """Parameter vectors (D,) to sample from in this iteration."""

    @abstractmethod
    def new_direction(self, points: Sequence[Tensor], batches: Sequence[Episodes]) -> Tensor:
        """The direction d (D,), from the episodes of each point."""

    @abstractmethod
    def step_size(self) -> float:
        """gamma_t."""

    def eta(self) -> float:
        """eta_t; 1 is no memory."""
        return 1.0

    def normalizes(self) -> bool:
        """Whether steps have length gamma_t before the projection, else gamma_t |d|."""
        return True

    @property
    def decay(self) -> float:
        """2 / (t + 2) in iteration t."""
        return 2.0 / (self._n_updates + 2.0)

    def gradient(self, point: Tensor, batch: Episodes, weights: Tensor | None = None) -> Tensor:
        """G at ``point`` (D,); ``weights`` (N,) multiply each episode."""
        psi = batch.psi if weights is None else batch.psi * weights[batch.episode]
        return hvp.policy_gradient(self._log_probs(batch), point, psi, batch.episode)

    def hessian_vector(self, point: Tensor, vector: Tensor, batch: Episodes) -> Tensor:
        """B u at ``point``, (D,)."""
        return hvp.hessian_vector_product(self._log_probs(batch), point, vector, batch.psi, batch.episode)

    def log_likelihood(self, point: Tensor, batch: Episodes) -> Tensor:
        """Log p(tau | theta) of each episode, without the environment's part, (N,)."""
        with torch.no_grad():
            return hvp.per_trajectory(self._log_probs(batch)(point), batch.episode)

    def iteration_stream(self, name: str) -> torch.Generator:
        """The random stream ``name`` of this iteration, on the model's device."""
        return stream(self.stream_seed or 0, f"{name} {self._n_updates}", self.device)

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until ``total_timesteps`` are reached; the episodes under way are finished.

        Args:
            total_timesteps: environment steps.
            callback: as in stable-baselines3; a rollout is one iteration.
            log_interval: iterations between dumps of the log.
            tb_log_name: as in stable-baselines3; 'run': the name of the class.
            reset_num_timesteps: as in stable-baselines3.
            progress_bar: as in stable-baselines3.
        """
        total, hooks = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        hooks.on_training_start(locals(), globals())
        while self.num_timesteps < total:
            if not self._iterate(hooks):
                break
            self._update_current_progress_remaining(self.num_timesteps, total)
            if log_interval and self._n_updates % log_interval == 0:
                self.dump_logs()
        hooks.on_training_end()
        return self

    def dump_logs(self) -> None:
        """Write the log."""
        for name, key in (("ep_rew_mean", "r"), ("ep_len_mean", "l")):
            if self.ep_info_buffer:
                self.logger.record(f"rollout/{name}", safe_mean([e[key] for e in self.ep_info_buffer]))
        self.logger.record("time/iterations", self._n_updates, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the streams of all iterations to come, and what stable-baselines3 seeds."""
        super().set_random_seed(seed)
        if seed is not None:
            self.stream_seed = seed

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """As in stable-baselines3; no step led here, so theta of the iteration before is the same."""
        super().set_parameters(*args, **kwargs)
        self.previous = self.theta()  # 'load' puts the saved one in its place

    def _setup_model(self) -> None:
        self.require_spaces()
        self._setup_lr_schedule()
        loaded = self.stream_seed
        self.set_random_seed(self.seed)
        if loaded is not None:
            self.stream_seed = loaded
        if self.stream_seed is None:
            self.stream_seed = int(np.random.randint(2**31))  # noqa: NPY002 - as stable-baselines3 does
        s = self.settings
        network = {"net_arch": [s.hidden, s.hidden], "log_std": s.log_std, "log_std_min": s.log_std_min}
        arguments = {**network, "fixed_std": s.fixed_std, **self.policy_kwargs}
        self.policy = self._network(arguments)
        self.sampler = self._network(arguments).net
        self.previous = self.theta()  # theta of the iteration before
        self.direction = torch.zeros_like(self.previous)

    def _network(self, arguments: dict[str, Any]) -> EpisodicPolicy:
        made = self.policy_class(self.observation_space, self.action_space, **arguments)
        assert isinstance(made, EpisodicPolicy), "the policy must be an EpisodicPolicy"
        return made.to(self.device)

    def theta(self) -> Tensor:
        """The policy's parameters as one vector (D,), a copy."""
        return parameters_to_vector(self.policy.net.parameters()).detach().clone()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "sampler"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], ["previous", "direction"]

    def _iterate(self, callback: BaseCallback) -> bool:
        """One iteration; False if a callback asked to stop."""
        callback.on_rollout_start()
        theta, batches = self.theta(), []
        points = [self.policy.floored(point) for point in self.points(theta)]
        for number, point in enumerate(points):
            batch = self._collect(point, number, callback)
            if batch is None:
                return False
            batches.append(batch)
        callback.on_rollout_end()
        self.direction = self.new_direction(points, batches)
        size = self.step_size()
        move = transforms.normalized_step if self.normalizes() else transforms.step
        new = move(theta, self.direction, size)
        if not bool(torch.isfinite(new).all()):
            raise ConfigError(
                f"the parameters are not finite after iteration {self._n_updates}: lower step_size"
            )
        vector_to_parameters(self.policy.floored(new), self.policy.net.parameters())
        self.logger.record_mean("train/direction_norm", float(transforms.norm(self.direction)))
        self.logger.record_mean("train/step_size", size)
        self.logger.record_mean("train/eta", self.eta())
        if not self.policy.discrete:
            self.logger.record_mean("train/std", float(self.policy.net.log_std.detach().exp().mean()))
        self.previous = theta
        self._n_updates += 1
        return True

    def _collect(self, point: Tensor, number: int, callback: BaseCallback) -> Episodes | None:
        """Whole episodes with the policy at ``point``, shared out among the environments beforehand."""
        assert self.env is not None
        self.policy.set_training_mode(False)
        vector_to_parameters(point, self.sampler.parameters())
        generator = self.iteration_stream(f"actions {number}")
        seeds = stream(self.stream_seed or 0, f"environments {number} {self._n_updates}")
        self.env.seed(int(torch.randint(2**31, (), generator=seeds)))
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        n, total = self.env.num_envs, self.settings.trajectories
        left = np.array([total // n + (k < total % n) for k in range(n)])
        steps: list[list[tuple[Tensor, Tensor, float]]] = [[] for _ in range(n)]
        played: list[list[tuple[Tensor, Tensor, float]]] = []
        earned = np.zeros(n)  # before any normalization
        while left.any():
            features, actions, rewards, dones, infos = self._step(generator)
            earned[left > 0] += self._raw(rewards)[left > 0]
            self.num_timesteps += n
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            for k in np.flatnonzero(left):
                steps[k].append((features[k], actions[k], float(rewards[k])))
                if dones[k]:
                    played.append(steps[k])
                    steps[k] = []
                    left[k] -= 1
                    self._episode_num += 1
        self.logger.record_mean("train/episode_return", float(earned.sum()) / total)
        return self._episodes(played)

    def _raw(self, rewards: np.ndarray) -> np.ndarray:
        """The environments' own rewards of the step just made."""
        normalizer = self.get_vec_normalize_env()
        return rewards if normalizer is None else normalizer.get_original_reward()

    def _step(
        self, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One step of every environment; features and unclipped actions of what was seen."""
        assert self.env is not None
        assert self._last_obs is not None
        with torch.no_grad():
            features = self.policy.features(self.policy.obs_to_tensor(self._last_obs)[0]).float()  # type: ignore[arg-type]
            actions = self.policy.actions(self.sampler, features, generator)
        given = actions.cpu().numpy()
        if isinstance(self.action_space, spaces.Box):
            given = given.reshape(-1, *self.action_space.shape)
            given = np.clip(given, self.action_space.low, self.action_space.high)
        self._last_obs, rewards, dones, infos = self.env.step(given)  # type: ignore[assignment]
        return features, actions, rewards, dones, infos

    def _episodes(self, played: list[list[tuple[Tensor, Tensor, float]]]) -> Episodes:
        lengths = torch.tensor([len(episode) for episode in played])
        number = torch.repeat_interleave(torch.arange(len(played)), lengths).to(self.device)
        flat = [step for episode in played for step in episode]
        features, actions = torch.stack([x for x, _, _ in flat]), torch.stack([a for _, a, _ in flat])
        rewards = torch.tensor([reward for _, _, reward in flat], dtype=torch.float64, device=self.device)
        psi = hvp.rewards_to_go(rewards, number, self.settings.discount)
        if self.settings.baseline and len(played) > 1:
            psi = hvp.leave_one_out(psi, number)
        return Episodes(features, actions, psi.to(features.dtype), number)

    def _log_probs(self, batch: Episodes) -> hvp.LogProbs:
        return lambda parameters: self.policy.log_probs(parameters, batch.features, batch.actions)
