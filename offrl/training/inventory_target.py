"""Short trainings without a run directory: the price on unmet demand that reaches a service level."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.scenarios import Scenarios
from offrl.envs.inventory.work.scoring import score
from offrl.errors import ConfigError
from offrl.training.inventory import InventoryOptions, dearer, whole_units
from offrl.training.options import resolve_device
from offrl.training.seeding import seed_globally, streams

TRIALS = 8
CLOSE = 0.002
"""Of the fill rate."""
WIDEST = 1e4
"""Largest factor of the underage costs, and one over the smallest."""


@dataclass(frozen=True)
class Trial:
    """One training of the search."""

    penalty: float
    """Factor of all underage costs."""
    fill: float
    """Fill rate on the development paths."""


def parse_target(text: str) -> float:
    """``fill_rate=0.97`` -> 0.97.

    Raises:
        ConfigError: something else.
    """
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name != "fill_rate" or not 0 < number < 1:
        raise ConfigError(
            f"--target takes fill_rate=SHARE, a share between 0 and 1 such as 0.97, got {text!r}"
        )
    return number


def fresh(
    config: HDPOConfig, setting: AnySetting, steps: int, seed: int, device: str = "cpu"
) -> tuple[HDPO, Scenarios]:
    """What is to be trained, and the paths for it.

    Raises:
        ConfigError: the policy does not fit the setting.
    """
    seed_globally(seed)
    paths = setting.draw("train").to(device)
    return HDPO(paths, DemandFacts.of(setting, paths), config, [seed], steps), paths


def trained(
    config: HDPOConfig, setting: AnySetting, steps: int, seed: int, device: str = "cpu"
) -> InventoryPolicy:
    """The policy after some updates on a setting's training paths."""
    learner, paths = fresh(config, setting, steps, seed, device)
    source = Permutations(len(paths), config.batch_size or setting.splits["train"].batch, 1)
    data = streams([seed], "data", device)
    for _ in range(steps):
        learner.update(source.sample(data))
    return learner.policy(0)


def penalty_for(
    config: HDPOConfig, options: InventoryOptions, target: float, told: Callable[[Trial], None]
) -> float:
    """The factor of all underage costs at which the trained policy's fill rate on the development paths is ``target``.

    Each trial trains afresh for a quarter of the steps. Factors grow or shrink four times until the target lies
    between two of them; the next ones lie on a straight line between these, in log(factor) against log(1 - fill rate).

    Raises:
        ConfigError: no factor between 1 / 10,000 and 10,000 reaches it.
    """
    torch.set_num_threads(options.threads)
    setting, device = options.load(), str(resolve_device(options.device))
    dev, split = setting.draw("dev").to(device), setting.splits["dev"]
    steps, found = max(1, options.steps // 4), []

    def tried(penalty: float) -> Trial:
        dear = dearer(setting, penalty)
        policy = trained(config, dear, steps, options.seeds[0], device)
        own = score(whole_units(policy, setting, options.rounding), dev, min(split.ignore, dev.periods - 1))
        found.append(Trial(penalty, own.fill))
        told(found[-1])
        return found[-1]

    def best() -> Trial:
        return min(found, key=lambda trial: abs(trial.fill - target))

    low = high = tried(1.0)
    if abs(low.fill - target) <= CLOSE:
        return low.penalty
    while high.fill < target and high.penalty < WIDEST:
        low, high = high, tried(high.penalty * 4)
    while low.fill > target and low.penalty > 1 / WIDEST:
        low, high = tried(low.penalty / 4), low
    if not low.fill <= target <= high.fill:
        raise ConfigError(
            f"no price on unmet demand brings the fill rate to {target}: {low.fill:.3f} at factor {low.penalty:g}, "
            f"{high.fill:.3f} at {high.penalty:g}; train longer, or ask for less"
        )
    while abs(best().fill - target) > CLOSE and len(found) < TRIALS:
        middle = tried(_between(low, high, target))
        low, high = (middle, high) if middle.fill < target else (low, middle)
    return best().penalty


def _between(low: Trial, high: Trial, target: float) -> float:
    """The factor where a straight line in logarithms meets the target, kept away from both ends."""
    a, b, c = (math.log(max(1 - fill, 1e-6)) for fill in (low.fill, high.fill, target))
    share = (c - a) / (b - a) if b != a else 0.5
    span = math.log(high.penalty / low.penalty)
    return low.penalty * math.exp(span * min(max(share, 0.1), 0.9))
