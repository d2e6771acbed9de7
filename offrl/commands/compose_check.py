"""``offrl compose --check``: everything about a composition that can be wrong, before any weights are loaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec, key_columns
from offrl.data.reference import PUSHT
from offrl.errors import USER_ERRORS, ConfigError, DatasetError, PolicyError
from offrl.evaluation.environments import PUSHT_STATE, make_env, shown_parts
from offrl.evaluation.sources import env_facts, load_source, require_policy, source_facts, split_source
from offrl.nn.policy import Policy, read_description
from offrl.nn.skeleton import policy_skeleton
from offrl.policies.chunk import ChunkPolicy, Plans
from offrl.policies.composed import ComposedPolicy, composable, no_denoiser
from offrl.policies.composition import normalizer_ratios
from offrl.policies.wiring import Parts, Piece, Wiring, read_wiring, sizes


@dataclass
class Setting:
    """What an environment shows and takes."""

    spec: EnvSpec
    shown: Parts
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, spec: EnvSpec) -> "Setting":
        """Made once, to look at it."""
        env = make_env(spec)
        try:
            box: Any = env.action_space
            return cls(spec, shown_parts(env, spec), torch.from_numpy(box.low), torch.from_numpy(box.high))
        finally:
            env.close()


@dataclass
class Checked:
    """What a check found: mistakes, one line each, and lines that describe what fits."""

    wires: list[list[Piece]] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def wire(
    sources: Sequence[str], files: Sequence[str], parents: Sequence[Policy], setting: Setting
) -> Checked:
    """The pieces that each policy sees.

    Args:
        sources: names of the policies, for messages.
        files: a wiring file for each policy, '-' for one that is wired by name; none at all: all are.
        parents: the policies, or their skeletons.
        setting: the environment.

    Raises:
        ConfigError: another number of files than policies.
        FileNotFoundError: a file is missing.
    """
    if files and len(files) != len(sources):
        raise ConfigError(
            f"give --wiring once for each of the {len(sources)} policies, in their order ('-': by name), "
            f"or not at all; got {len(files)}"
        )
    found = Checked()
    for source, file, policy in zip(sources, files or ["-"] * len(sources), parents, strict=True):
        by_name = file == "-"
        wiring = Wiring(inputs_of(policy, source, setting), setting.shown, source if by_name else file)
        found.wires.append(wiring.by_name() if by_name else wiring.by_file(read_wiring(Path(file))))
        found.mistakes += wiring.mistakes
    return found


def inputs_of(policy: Policy, source: str, setting: Setting) -> Parts:
    """The inputs that a policy declares; those of the environment where its run was recorded in just that."""
    declared: Parts | None = getattr(policy, "inputs", None)
    if declared and tuple(declared) != (("observation", (policy.obs_dim,)),):
        return declared
    own = source_facts(source).env if split_source(source)[0] == "run" else None
    if own is not None and env_facts(own) == env_facts(setting.spec):  # a table's row says more besides
        return setting.shown
    return [("observation", (policy.obs_dim,))]


def inputs_columns(data: OfflineDataset, policy: ChunkPolicy) -> np.ndarray:
    """What a policy would have seen at each recorded step, (N, O), by the names of its inputs.

    Raises:
        DatasetError: a part was not recorded, or has another width.
    """
    return named_columns(data, policy.inputs)


def named_columns(data: OfflineDataset, parts: Parts) -> np.ndarray:
    """Parts of recorded observations side by side, (N, O) float32, found by name.

    Raises:
        DatasetError: a part was not recorded, or has another width.
    """
    if [name for name, _ in parts] == ["observation"] and int(np.prod(parts[0][1])) == data.obs_dim:
        return data.flat_observations()
    columns = []
    for name, shape in parts:
        key, part = key_columns(name)
        field = (
            "observations"
            if key == "observation" and "observations" in data.fields
            else f"observations.{key}"
        )
        if field not in data.fields and (found := _of_plain_pusht(data, key)) is not None:
            columns.append(found)
            continue
        if field not in data.fields:
            raise DatasetError(
                f"the demonstrations have no {key!r}; they have "
                + ", ".join(k for k in data.fields if k.startswith("observations"))
            )
        values = data.fields[field].reshape(data.num_steps, -1)[:, part]
        if values.shape[1] != int(np.prod(shape)):
            raise DatasetError(
                f"{name!r} has {values.shape[1]} numbers in the demonstrations, not {sizes(shape)}"
            )
        columns.append(values.astype(np.float32))
    return np.concatenate(columns, axis=1)


def _of_plain_pusht(data: OfflineDataset, name: str) -> np.ndarray | None:
    """A part of PushT's plain observation, as collecting in pusht-state records it; None where there is none."""
    start = 0
    if data.metadata.get("env_id") == PUSHT and data.observation_keys == ("observations",):
        for part, (width,) in PUSHT_STATE:
            if part == name and data.obs_dim == sum(size for _, (size,) in PUSHT_STATE):
                return data.fields["observations"][:, start : start + width].astype(np.float32)
            start += width
    return None


def check_all(
    sources: Sequence[str],
    files: Sequence[str],
    setting: Setting,
    compose: Callable[[list[Policy], Sequence[Sequence[Piece]], int], ComposedPolicy],
) -> Checked:
    """Everything, without weights.

    Args:
        sources: names of the policies.
        files: their wiring files, as in ``wire``.
        setting: the environment.
        compose: the composition of skeletons, their wires, and the width of an observation.
    """
    skeletons, failed = [], []
    for number, source in enumerate(sources, 1):
        try:
            skeletons.append(skeleton(source, setting))
        except USER_ERRORS as error:
            failed.append(f"policy {number}: {error}")
    if failed:
        return Checked(mistakes=failed)
    found = wire(sources, files, skeletons, setting)
    for number, (source, policy) in enumerate(zip(sources, skeletons, strict=True), 1):
        found.lines += describe(number, source, policy)
        found.mistakes += boxes(source, policy, setting)
    found.lines += ratios(skeletons)
    if not found.mistakes:
        try:
            found.lines += levels(compose(skeletons, found.wires, width(setting)))
        except USER_ERRORS as error:
            found.mistakes.append(str(error))
    return found


def skeleton(source: str, setting: Setting) -> Policy:
    """A policy that can be composed, without weights where it is one of this package.

    Raises:
        ConfigError, PolicyError, FileNotFoundError: no such policy, or one that has no denoiser.
    """
    scheme, rest = split_source(source)
    if scheme not in ("run", "sb3", "lerobot", "py", "served"):
        raise ConfigError(f"{source} has no denoiser; compose chunk policies or Gaussian actors")
    if scheme == "run":
        require_policy(Path(rest))
        if (description := read_description(rest)).get("parents"):
            raise PolicyError(no_denoiser(str(description.get("kind"))))
    policy = policy_skeleton(rest) if scheme == "run" else load_source(source, setting.spec)
    composable(policy)
    return policy


def width(setting: Setting) -> int:
    """Numbers of an observation."""
    return sum(int(torch.Size(shape).numel()) for _, shape in setting.shown)


def describe(number: int, source: str, policy: Policy) -> list[str]:
    """A policy in a few lines."""
    inputs: Parts | None = getattr(policy, "inputs", None)
    if not isinstance(policy, Plans) or inputs is None:
        return [f"policy {number}: {source}: a {policy.kind} actor, one action at a time"]
    head = (
        f"policy {number}: {source}: {getattr(policy, 'family', policy.kind)}, chunks of {policy.horizon}, "
        f"{policy.n_obs} observations seen, {policy.n_act} actions carried out, {policy.denoising_steps} denoising "
        "steps"
    )
    return [head, *(f"  input {name}: {sizes(shape)}" for name, shape in inputs)]


def boxes(source: str, policy: Policy, setting: Setting) -> list[str]:
    """What is wrong with a policy's actions."""
    if policy.act_dim != len(setting.low):
        return [
            f"{source}: has {policy.act_dim} action dims, {setting.spec.env_id} takes {len(setting.low)}; "
            "was it trained on another task?"
        ]
    same = torch.allclose(policy.action_low, setting.low) and torch.allclose(policy.action_high, setting.high)
    if same:
        return []
    return [
        f"{source}: acts in the box {policy.action_low.tolist()} .. {policy.action_high.tolist()}, "
        f"{setting.spec.env_id} takes {setting.low.tolist()} .. {setting.high.tolist()}; "
        "retrain it, or compose in the environment it was made for"
    ]


def ratios(policies: Sequence[Policy]) -> list[str]:
    """The table of ratios of the action normalizers."""
    faces = [composable(p).denoiser().actions for p in policies]
    if len({len(f.scale) for f in faces}) > 1:
        return []
    lines = ["action normalizers, factor to policy 1 in each action dim (one number in a row: exact)"]
    for number, ratio in enumerate(normalizer_ratios(faces), 1):
        lines.append(f"  policy {number}: " + " ".join(f"{x:.4g}" for x in ratio.tolist()))
    return lines


def levels(policy: ComposedPolicy) -> list[str]:
    """How the composition denoises."""
    c = policy.composition()
    worst = ", ".join(f"{x:.2g}" for x in c.mismatch)
    return [
        f"composition: {c.rows} rows, now is row {c.now}, {policy.n_act} actions carried out, {len(c.grid) - 1} "
        f"noise levels; worst |ln rho| between a level and the one that each policy is asked at: {worst}"
    ]
