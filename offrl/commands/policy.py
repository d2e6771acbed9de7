"""``offrl policy ...``: what can be done to policies on disk."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import track

from offrl.commands.arguments import parse, subcommand
from offrl.commands.compose_check import inputs_columns
from offrl.data.load import load_dataset
from offrl.errors import ConfigError
from offrl.evaluation.sources import check_folder, require_policy
from offrl.nn.policy import Policy, load_policy, read_description, save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composition import normalizer_ratios
from offrl.policies.renormalize import renormalize

SUBCOMMANDS = {
    "renormalize": "teach a chunk policy another one's normalized actions, so that the two compose exactly",
    "convert": "read a LeRobot folder or a Diffusion Policy checkpoint, write it as a policy of this package",
}


@dataclass(frozen=True, kw_only=True)
class RenormalizeOptions:
    """Change the action units of a chunk policy to those of another one, by a short fine-tuning on demonstrations.

    Two policies compose exactly only if their action normalizers differ by one factor for all dims ('offrl compose
    --check' prints the factors). Example, a minute or two for a small network:

      offrl policy renormalize RUN_B --like RUN_A --demos builtin:pusht-demo --out b_in_units_of_a

    Afterwards see whether it still acts as well: offrl eval b_in_units_of_a --env pusht-state
    """

    policy: tyro.conf.Positional[Path]
    """Folder of the policy to change; it stays as it is."""
    like: Path
    """Folder of the policy whose units are taken."""
    demos: str
    """Demonstrations, a dataset URI: their flat view, or the parts that the policy's inputs name."""
    steps: int = 2000
    """Updates."""
    lr: float = 1e-4
    """Largest step size."""
    seed: int = 0
    """Of windows and noise."""
    out: Path
    """Folder for the result."""


def main(argv: list[str]) -> int:
    """``offrl policy ...``."""
    name = subcommand("policy", SUBCOMMANDS, overview, argv)
    if name is None:
        return 0
    if name == "convert":
        done: int = importlib.import_module("offrl.commands.policy_convert").main(argv[1:])
        return done
    return run_renormalize(parse(RenormalizeOptions, "offrl policy renormalize", argv[1:]))


def overview() -> str:
    """The text of ``offrl policy --help``."""
    lines = ["usage: offrl policy SUBCOMMAND ...", ""]
    lines += [f"  {name:12} {about}" for name, about in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "'offrl policy SUBCOMMAND --help' explains each"])


def run_renormalize(options: RenormalizeOptions) -> int:
    """Load, teach, save."""
    if options.steps < 1 or not options.lr > 0:
        raise ConfigError(f"steps and lr must be above 0, got {options.steps} and {options.lr}")
    check_folder(options.out, "--out")
    if options.out.resolve() == options.policy.resolve():
        raise ConfigError(f"{options.policy} stays as it is: choose another folder for --out")
    policy, other = chunk(options.policy), chunk(options.like)
    if policy.act_dim != other.act_dim:
        raise ConfigError(f"the policies have {policy.act_dim} and {other.act_dim} action dims")
    data = load_dataset(options.demos)
    ratio = normalizer_ratios([other.normalizer("action"), policy.normalizer("action")])[1]
    print("factors in each action dim so far: " + " ".join(f"{x:.4g}" for x in ratio.tolist()), flush=True)
    losses = renormalize(
        policy,
        other.normalizer("action"),
        inputs_columns(data, policy),
        data.fields["actions"],
        data.episode_starts,
        steps=options.steps,
        lr=options.lr,
        seed=options.seed,
    )
    console, last = Console(stderr=True), torch.zeros(options.steps)
    for step, loss in enumerate(track(losses, total=options.steps, console=console, transient=True)):
        last[step] = loss
    extra = read_description(options.policy).get("extra", {})
    save_policy(policy, options.out, {**extra, "units_of": str(options.like)})
    tail = max(options.steps // 10, 1)
    print(f"loss {last[:tail].mean():.4f} at first, {last[-tail:].mean():.4f} at last; saved {options.out}")
    return 0


def chunk(folder: Path) -> ChunkPolicy:
    """A chunk policy.

    Raises:
        FileNotFoundError, PolicyError: no such folder, or it holds no policy.
        ConfigError: it is another kind of policy.
    """
    require_policy(folder)
    policy: Policy = load_policy(folder)
    if not isinstance(policy, ChunkPolicy):
        raise ConfigError(
            f"{folder} is a {policy.kind} policy; only chunk policies have normalized actions to change"
        )
    return policy
