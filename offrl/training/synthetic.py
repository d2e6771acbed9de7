"""Batches of real and other rows: another dataset's, or those that a trajectory model draws as the agent changes.

    batch     1 - share of its rows from the run's data, share from the others
    refresh   before the first update rows drawn without guidance, then every ``refresh`` updates rows drawn anew,
              guided by the agent of that moment

Observations are normalized and rewards scaled as those of the run's own data.

Source: arXiv:2404.06356, official code EmptyJackson/policy-guided-diffusion, ``train_agent.py``: 240 of 256 rows are
synthetic, drawn anew every 10 000 updates.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset
from offrl.data.load import absolute_uri, load_dataset
from offrl.data.source import MixedSource
from offrl.diffusion.guidance import Guidance, policy_log_prob
from offrl.diffusion.sampler import Sampler
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import CheckpointError, ConfigError
from offrl.generate import Plan, fingerprint, generate
from offrl.nn.policy import JSON_NAME, Policy, load_policy
from offrl.training.options import RunOptions
from offrl.training.problem import Algorithm, Problem


@dataclass(frozen=True)
class Mix:
    """What is mixed in, as ``config.json`` records it."""

    uri: str
    share: float
    sha256: str  # of the data, or of the model's weights
    refresh: int = 0
    transitions: int = 0
    guidance: float = 0.0
    sampling_steps: int = 0


def parse_mix(options: RunOptions) -> dict[str, Any] | None:
    """The record of ``--mix`` and its companions; None without it.

    Raises:
        ConfigError: not URI:SHARE, a share outside (0, 1), an option of draws for what is no trajectory model, or
            guidance without refresh.
    """
    if options.mix is None:
        if options.refresh:
            raise ConfigError("--refresh needs --mix RUN:SHARE, RUN being of policy_guided_diffusion")
        return None
    uri, _, text = options.mix.rpartition(":")
    try:
        share = float(text)
    except ValueError:
        uri = ""
    if not uri or not 0.0 < share < 1.0:
        raise ConfigError(
            f"--mix takes URI:SHARE with a share in (0, 1), e.g. synth.hdf5:0.9; got {options.mix!r}"
        )
    if (model := _model(uri)) is None:
        for name in ("refresh", "synthetic_transitions", "guidance", "sampling_steps"):
            if getattr(options, name) != getattr(RunOptions, name):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} needs a run of policy_guided_diffusion, and {uri} is a dataset")
        return asdict(Mix(absolute_uri(uri), share, load_dataset(uri).sha256))
    if not options.refresh and options.guidance != RunOptions.guidance:
        raise ConfigError("the first draws are not guided: --guidance needs --refresh N")
    path = str(Path(uri.removeprefix("run:")).resolve())
    drawn = (options.synthetic_transitions, options.guidance, options.sampling_steps)
    return asdict(Mix(path, share, fingerprint(model), options.refresh, *drawn))


def _model(uri: str) -> TrajectoryModel | None:
    """The trajectory model of a run; None for what is no run."""
    path = Path(uri.removeprefix("run:"))
    if not (path / JSON_NAME).is_file():
        return None
    found = load_policy(path)
    if not isinstance(found, TrajectoryModel):
        raise ConfigError(f"{path} holds a policy, not a trajectory model: it cannot be mixed in")
    return found


@dataclass(frozen=True)
class RowMaker:
    """How steps of another dataset become rows of the run's table."""

    problem: Problem
    method: Algorithm
    scaled: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        if self.method.returns_to_go or self.method.windows:
            raise ConfigError("--mix is for methods that learn from single steps, not from whole episodes")
        if self.method.own_rows:
            raise ConfigError("--mix does not go with a method that looks rows up in the run's own data")

    def rows(self, data: OfflineDataset) -> Tensor:
        """Rows (n, W) in the columns of ``UniformSource``."""
        sizes = (self.problem.obs_dim, self.problem.act_dim)
        if (data.obs_dim, data.act_dim) != sizes:
            raise ConfigError(
                f"the data mixed in have O={data.obs_dim}, A={data.act_dim}, the run's O={sizes[0]}, A={sizes[1]}"
            )
        t = data.transitions(
            data.metadata.get("rows_default", "exact"), next_actions=self.method.next_actions
        )
        low, high = self.problem.action_low.cpu(), self.problem.action_high.cpu()
        actions = torch.from_numpy(t.actions)
        tolerance = 1e-4 * (high - low)
        if ((actions < low - tolerance) | (actions > high + tolerance)).any():
            raise ConfigError("the data mixed in have actions outside the box of the run")
        normalize = self.problem.normalizer
        parts = [normalize(torch.from_numpy(t.observations)), actions]
        parts += [torch.from_numpy(self.scaled(t.rewards)[:, None])]
        parts += [normalize(torch.from_numpy(t.next_observations)), torch.from_numpy(t.terminated[:, None])]
        if t.next_actions is not None:
            parts.append(torch.from_numpy(t.next_actions))
        return torch.cat(parts, dim=1)


class OtherDataSource(MixedSource):
    """Batches of the run's rows and another dataset's."""

    def __init__(self, *fields: Any, batch_size: int, share: float, rows: Tensor) -> None:
        super().__init__(*fields, batch_size=batch_size, capacity=len(rows), share=share)
        self.append(rows)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the rows are loaded again."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class SyntheticSource:
    """Batches of the run's rows and of rows that a trajectory model draws, anew every ``mix.refresh`` updates.

    Args:
        mixed: the run's rows, and room for the others.
        model: what is drawn from.
        mix: how.
        maker: turns what was drawn into rows.
        seed: of the draws.
    """

    metrics = ("synthetic_log_prob",)

    def __init__(
        self, mixed: MixedSource, model: TrajectoryModel, mix: Mix, maker: RowMaker, seed: int
    ) -> None:
        self.mixed, self.model, self.mix, self.maker, self.seed = mixed, model, mix, maker, seed
        self.updates = 0

    def __len__(self) -> int:
        return len(self.mixed)

    def refresh(self, policy: Callable[[], Policy]) -> dict[str, Tensor]:
        """Draw rows where this update wants new ones; the mean log-likelihood of their actions under the agent."""
        due = self.updates == 0 or (self.mix.refresh > 0 and self.updates % self.mix.refresh == 0)
        number = self.updates // self.mix.refresh if self.mix.refresh else 0
        self.updates += 1
        return self.draw(policy(), number) if due else {}

    def draw(self, policy: Policy, number: int) -> dict[str, Tensor]:
        """Replace the synthetic rows by set ``number`` of this seed; set 0 is not guided."""
        policy = policy.to(self.model.row_mean.device).eval()
        coef = self.mix.guidance if number else 0.0
        guidance = Guidance(coef, normalize=True, step_independent=True)
        plan = Plan(Sampler(self.mix.sampling_steps, guidance=guidance), seed=self.seed, number=number)
        fields = generate(self.model, self.mix.transitions, plan, policy if coef else None)
        self.mixed.appended = 0
        self.mixed.append(self.maker.rows(OfflineDataset.from_fields(fields)))
        return {"synthetic_log_prob": mean_log_prob(self.model, policy, fields)[None]}

    def sample(self, generators: Sequence[torch.Generator]) -> Batch:
        """A batch (1, B, ...): the run's rows first."""
        return self.mixed.sample(generators)

    def state_dict(self) -> dict[str, Any]:
        """The drawn rows and the number of updates."""
        return {"updates": self.updates, **self.mixed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.updates = state["updates"]
        self.mixed.load_state_dict(state)


@torch.no_grad()
def mean_log_prob(model: TrajectoryModel, policy: Policy, fields: dict[str, np.ndarray]) -> Tensor:
    """Mean log pi(a | o) over a dataset's rows, nats; a deterministic policy is a Gaussian one half-range wide."""
    device = model.row_mean.device
    observations, actions = (torch.from_numpy(fields[n]).to(device) for n in ("observations", "actions"))
    unit = (actions - model.center) / model.half_range
    return policy_log_prob(policy)(observations, unit.clamp(-0.999999, 0.999999).atanh()).mean()


def make_mixed_source(
    problem: Problem,
    fields: Sequence[Any],
    method: Algorithm,
    scaled: Callable[[np.ndarray], np.ndarray],
    batch_size: int,
    record: dict[str, Any],
) -> OtherDataSource | SyntheticSource:
    """The source of a run with ``--mix``.

    Args:
        problem: of the run's own data.
        fields: the positional arguments of ``UniformSource`` for them.
        method: the algorithm.
        scaled: rewards as the learner sees them.
        batch_size: B.
        record: of ``config.json``.

    Raises:
        CheckpointError: what is mixed in changed since the run began.
        ConfigError: it does not fit the run's data, or the method.
    """
    mix, maker = Mix(**record), RowMaker(problem, method, scaled)
    if not 1.0 <= batch_size * mix.share + 1e-9 < batch_size:
        raise ConfigError(
            f"a share of {mix.share} of a batch of {batch_size} rows leaves none of one kind; change batch_size"
        )
    model = _model(mix.uri)
    data = load_dataset(mix.uri) if model is None else None
    found = fingerprint(model) if model is not None else data.sha256 if data is not None else ""
    if found != mix.sha256:
        raise CheckpointError(f"{mix.uri} changed since the run began (SHA-256 differs); restore it")
    if data is not None:
        return OtherDataSource(*fields, batch_size=batch_size, share=mix.share, rows=maker.rows(data))
    assert model is not None
    if len(problem.seeds) > 1:
        raise ConfigError("rows drawn for each agent need a process a seed: add --seed-mode processes")
    model = model.to(problem.device)
    if (model.obs_dim, model.act_dim) != (problem.obs_dim, problem.act_dim):
        raise ConfigError(f"{mix.uri} models O={model.obs_dim}, A={model.act_dim}; the data are others")
    mixed = MixedSource(*fields, batch_size=batch_size, capacity=mix.transitions, share=mix.share)
    return SyntheticSource(mixed, model, mix, maker, problem.seeds[0])
