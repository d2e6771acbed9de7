"""``offrl eval SOURCE --adjust RUN``: the options of an adjustment, and the table that says what it did."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from offrl.data.environments import EnvSpec
from offrl.diffusion.adjustment import SIGMA, Adjustment, CDSAModel, CDSAPolicy, StateReference
from offrl.errors import ConfigError
from offrl.evaluation.sources import load_source
from offrl.nn.policy import Policy

LABEL = "CDSA (reconstruction, not verified against the authors' code)"


@dataclass(frozen=True, kw_only=True)
class AdjustOptions:
    """How actions are pulled towards the data of a run of cdsa."""

    adjust: Path | None = None
    """Run directory of cdsa (a reconstruction of the method): pull the policy's actions towards its data."""
    adjust_alpha: float = 0.1
    """Share of the step to the denoised action; with --adjust-beta 0, 0 is the policy itself."""
    adjust_beta: float = 0.0
    """Share of the step to the action that leads to the denoised state."""
    adjust_eta: float = 1.0
    """Share of the step to the denoised state (with --adjust-beta)."""
    adjust_sigma: float | None = None
    """Noise level of the score; default: 0.1, or the only one that the run was trained on."""
    adjust_steps: int = 1
    """How often the actions are pulled."""
    adjust_state_ref: StateReference = "current"
    """Whose density counts: the current state's, or the next one's by a one-step model (with --adjust-beta)."""
    adjust_out: Path | None = None
    """Also write the adjusted policy to this folder, a SOURCE for every command."""


def adjusted(options: AdjustOptions, base: Policy) -> Policy:
    """``base`` as the options adjust it; itself without --adjust.

    Raises:
        ConfigError: options without effect, or settings that do not fit the run.
        PolicyError: the run is of another environment.
    """
    if options.adjust is None:
        changed = [f.name for f in fields(AdjustOptions) if getattr(options, f.name) != f.default]
        if changed:
            raise ConfigError(f"--{changed[0].replace('_', '-')} needs --adjust RUN, a run of cdsa")
        return base
    for name in ("eta", "state_ref"):  # of the states' part
        option = f"adjust_{name}"
        if options.adjust_beta == 0.0 and getattr(options, option) != getattr(AdjustOptions, option):
            raise ConfigError(f"--{option.replace('_', '-')} has no effect without --adjust-beta")
    model = load_source(f"run:{str(options.adjust).removeprefix('run:')}", EnvSpec(env_id=""))
    if not isinstance(model, CDSAModel):
        raise ConfigError(
            f"{options.adjust} is not a run of cdsa; make one with: offrl train cdsa --dataset URI"
        )
    sigma = options.adjust_sigma
    if sigma is None:
        sigma = SIGMA if model.sigma_min < model.sigma_max else model.sigma_max
    settings: dict[str, Any] = {"sigma": sigma}
    for field in fields(Adjustment):
        if field.name != "sigma":
            settings[field.name] = getattr(options, f"adjust_{field.name}")
    return CDSAPolicy(base, model, **settings).eval()


def comparison_lines(adjustment: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The comparison with the policy itself, for people."""
    settings = ", ".join(f"{name} {value}" for name, value in adjustment.items())
    lines = [f"{LABEL}: {settings}", "same episodes      policy   adjusted   difference (95 % interval)"]
    for name, row in rows.items():
        line = f"{name:10} {row['base']:14.1f} {row['adjusted']:10.1f} {row['difference']:12.1f}"
        if row["interval"] is not None:
            line += " ({:.1f} .. {:.1f})".format(*row["interval"])
        lines.append(line)
    return lines
