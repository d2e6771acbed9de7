"""Synthetic datasets from a trajectory model: batches of windows, each from its own random stream, as episodes.

A window of L rows gives L - 1 transitions, the last row being the successor of the one before; with ``keep_terminal`` a
last row that the model calls terminal is a transition too, so that terminations are not lost. A window ends its episode
(``truncated``) where it does not terminate.

Source: arXiv:2404.06356, official code EmptyJackson/policy-guided-diffusion, ``diffusion/rollout_generator.py``, which
keeps no last row and thereby all but no terminal step.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.diffusion.sampler import Sampler, sample_steps
from offrl.diffusion.trajectory import Rows, TrajectoryModel
from offrl.errors import ConfigError, PolicyError
from offrl.files import atomic_write, atomic_write_json, read_json_object
from offrl.nn.policy import Policy
from offrl.training.seeding import stream

Arrays = dict[str, np.ndarray]
Progress = Callable[[float], None]  # called with the number of transitions so far
RECORD = "plan.json"  # beside unfinished batches: what they were drawn from


@dataclass(frozen=True)
class Plan:
    """What is drawn; the same plan gives the same data."""

    sampler: Sampler = field(default_factory=Sampler)
    length: int = 0  # rows of a window; 0: as the model was trained
    batch: int = 256  # windows drawn together
    keep_terminal: bool = True
    seed: int = 0
    number: int = 0  # which dataset of this seed

    def __post_init__(self) -> None:
        if self.batch < 1 or self.seed < 0 or (self.length and self.length < 4):
            raise ConfigError(
                f"batch must be 1 or more, seed 0 or more, length 4 or more (0: the model's), got {self.batch}, "
                f"{self.seed}, {self.length}"
            )


def check_policy(model: TrajectoryModel, policy: Policy | None) -> None:
    """Refuse a target policy that is of another environment than the model (PolicyError)."""
    if policy is None:
        return
    sizes = (model.obs_dim, model.act_dim)
    if (policy.obs_dim, policy.act_dim) != sizes:
        raise PolicyError(
            f"the policy has O={policy.obs_dim}, A={policy.act_dim}, the model O={sizes[0]}, A={sizes[1]}; "
            "were they trained on one environment?"
        )
    for name in ("action_low", "action_high"):
        if not torch.equal(getattr(policy, name).cpu(), getattr(model, name).cpu()):
            raise PolicyError(f"policy and model have different action boxes ({name})")


def generate(
    model: TrajectoryModel,
    transitions: int,
    plan: Plan,
    policy: Policy | None = None,
    *,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Arrays:
    """Draw ``transitions`` rows: the dataset's fields, with ``next_observations``.

    Args:
        model: what is drawn from, on the device to use.
        transitions: N.
        plan: how.
        policy: the target of guidance.
        folder: where each batch is kept as soon as it is drawn; a later call goes on from there.
        identity: what the batches in ``folder`` must have been drawn from, besides the plan.
        progress: called after each step of the sampler.

    Raises:
        ConfigError: ``transitions`` below 1, a length below what the model halves, or the folder holds batches of
            another plan.
        PolicyError: the policy does not fit the model.
    """
    if transitions < 1:
        raise ConfigError(f"transitions must be 1 or more, got {transitions}")
    check_policy(model, policy)
    if 0 < plan.length < (least := 2 ** (model.net.blocks - 1)):
        raise ConfigError(f"this model's trajectories need {least} steps or more, got length {plan.length}")
    claim = json.loads(json.dumps({"plan": asdict(plan), **(identity or {})}))
    if folder is not None:
        _check_claim(folder, claim)
    parts: list[Arrays] = []
    done = 0
    while done < transitions:
        path = None if folder is None else folder / f"part{len(parts):06d}.npz"
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                part = dict(saved)
        else:
            part = _draw(model, policy, plan, len(parts), done, progress)
            if path is not None:
                if not parts:  # only now: a command that fails leaves nothing that would refuse the next one
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write_json(path.parent / RECORD, claim)
                with atomic_write(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, **part)  # type: ignore[arg-type]
        parts.append(part)
        done += len(part["rewards"])
    return _cut({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, transitions)


def _draw(
    model: TrajectoryModel,
    policy: Policy | None,
    plan: Plan,
    index: int,
    done: int,
    progress: Progress | None,
) -> Arrays:
    """Batch ``index``."""
    generator = stream(plan.seed, f"generate {plan.number} {index}", model.row_mean.device)
    length = plan.length or model.length
    rows, steps = torch.empty(0), plan.sampler.steps
    drawn = sample_steps(model, plan.batch, length, generator, plan.sampler, policy)
    for step, rows in enumerate(drawn, start=1):  # noqa: B007 - the last rows are the sample
        if progress is not None:
            progress(done + plan.batch * (length - 1) * step / steps)
    if not torch.isfinite(rows).all():
        raise PolicyError(
            "the sampled rows are not finite: is the model trained, or the guidance too strong?"
        )
    return transitions_of(model.decode(rows), keep_terminal=plan.keep_terminal)


def transitions_of(rows: Rows, *, keep_terminal: bool) -> Arrays:
    """Windows (B, L) as the fields of a dataset, one after the other."""
    observations = rows.observations
    kept = torch.ones_like(rows.terminated)
    kept[:, -1] = rows.terminated[:, -1] & keep_terminal
    truncated = torch.zeros_like(kept)
    truncated[:, -2] = ~kept[:, -1] & ~rows.terminated[:, -2]
    successors = torch.cat((observations[:, 1:], observations[:, -1:]), dim=1)
    fields = {
        "observations": observations,
        "actions": rows.actions,
        "rewards": rows.rewards,
        "terminated": rows.terminated,
        "truncated": truncated,
        "next_observations": successors,
    }
    return {name: value[kept].cpu().numpy() for name, value in fields.items()}


def _cut(fields: Arrays, count: int) -> Arrays:
    """The first ``count`` rows; the last one ends its episode."""
    fields = {name: array[:count] for name, array in fields.items()}
    fields["truncated"][-1] |= ~fields["terminated"][-1]
    return fields


def _check_claim(folder: Path, claim: dict[str, Any]) -> None:
    """Refuse batches in ``folder`` that were drawn from other things (ConfigError)."""
    if not any(folder.glob("part*.npz")):
        return
    found = read_json_object(folder / RECORD, ConfigError)
    for name, value in claim.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{folder} holds batches of another sampling ({name} differs); delete it, or repeat that command"
            )


def parts_folder(out: Path) -> Path:
    """Where the batches of an unfinished file are kept."""
    return out.with_name(out.name + ".parts")


def drop_parts(out: Path) -> None:
    """Forget the batches of a file that is written."""
    shutil.rmtree(parts_folder(out), ignore_errors=True)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return digest.hexdigest()
