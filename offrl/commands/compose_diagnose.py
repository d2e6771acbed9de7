"""``offrl compose --diagnose --demos D``: a hint at weights and gain from denoising errors, without playing."""

from typing import Any

import numpy as np
import torch

from offrl.commands.compose_check import Setting, named_columns
from offrl.data.dataset import OfflineDataset
from offrl.data.windows import windows
from offrl.errors import DatasetError
from offrl.policies.composed import ComposedPolicy
from offrl.policies.diagnosis import Hint, error_products, hint

CHUNKS = 512  # demonstrated chunks that are denoised


def diagnose(policy: ComposedPolicy, data: OfflineDataset, setting: Setting, seed: int) -> Hint:
    """Errors of the parents on chunks spread evenly over demonstrations that none of them was trained on.

    Raises:
        DatasetError: the demonstrations lack what the environment shows, or are too short or too few.
    """
    if (space := policy.chunky()[0].space) != "actions":
        raise DatasetError(
            f"demonstrations hold actions, these policies denoise {space}: there is nothing to compare"
        )
    observations = named_columns(data, setting.shown)
    c = policy.composition()
    rows, _ = windows(data.episode_starts, c.rows, pad_before=c.now, pad_after=policy.n_act - 1)
    if len(rows) < 2 or data.num_episodes < 2:
        raise DatasetError("a diagnosis needs two episodes or more, as long as the policies' chunks")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(CHUNKS, len(rows))).round().astype(int))
    rows = rows[chosen]
    seen = torch.from_numpy(observations[rows[:, c.now - policy.n_obs + 1 : c.now + 1]])
    actions = torch.from_numpy(data.fields["actions"][rows].astype(np.float32))
    parents, histories = policy.chunky(), policy.histories(seen)
    with torch.no_grad():
        conditions = [p.encode(h) for p, h in zip(parents, histories, strict=True)]
    chunks = parents[0].denoiser().actions(actions)
    products = error_products(c, conditions, chunks, torch.Generator().manual_seed(seed))
    groups = np.searchsorted(data.episode_starts, rows[:, c.now], side="right")
    return hint(products, groups, seed=seed)


def summary_of(found: Hint) -> dict[str, Any]:
    """As JSON values."""
    return {
        "hint": True,
        "errors": found.errors,
        "weights": found.weights,
        "weight_interval": [list(pair) for pair in found.weight_interval],
        "mixture": found.mixture,
        "gain": found.gain,
        "gain_share": found.share,
        "gain_interval": list(found.gain_interval),
        "weights_by_level": found.by_level,
    }


def describe_hint(found: Hint) -> str:
    """For people."""
    low, high = found.gain_interval
    lines = ["a hint, not a result: how the errors of the predicted noise combine on the demonstrations"]
    for number, (error, w, sides) in enumerate(
        zip(found.errors, found.weights, found.weight_interval, strict=True), 1
    ):
        lines.append(
            f"  policy {number}: mean squared error {error:.4f}, best weight {w:.2f} ({sides[0]:.2f} .. {sides[1]:.2f})"
        )
    lines.append(
        f"  best mixture: {found.mixture:.4f}, {found.gain:.4f} below the better policy ({low:.4f} .. {high:.4f}), "
        f"{100 * found.share:.1f} % of its error"
    )
    first = " ".join(f"{w[0]:.2f}" for w in found.by_level)
    lines.append(f"  best weight of policy 1 at each level, noisiest first: {first}")
    if max(found.weights) > 1 - 1e-9:
        best = int(np.argmax(found.weights)) + 1
        lines.append(
            f"  the errors are aligned: policy {best} alone is best, a composition has nothing to gain"
        )
    else:
        lines.append("  check it by playing: offrl compose ... --search")
    return "\n".join(lines)
