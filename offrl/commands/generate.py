"""``offrl generate``: a synthetic dataset from a trained trajectory model."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from offrl.commands.arguments import parse
from offrl.commands.collect import progress_bar
from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.data.write import check_target
from offrl.diffusion.guidance import Guidance
from offrl.diffusion.sampler import Sampler
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import ConfigError
from offrl.evaluation.sources import load_source
from offrl.generate import Plan, check_policy, drop_parts, fingerprint, generate, parts_folder
from offrl.nn.policy import Policy
from offrl.training.options import resolve_device
from offrl.training.run_dir import RunDir


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Draw synthetic trajectories from a run of policy_guided_diffusion, guided by a policy or not.

    The same options give the same bytes, whatever the file is called. Stopped, the same command goes on where it was:
    finished batches are kept in FILE.hdf5.parts until the file is written.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Run directory of policy_guided_diffusion."""
    out: str
    """FILE.hdf5, in D4RL's layout."""
    transitions: int = 100_000
    """Transitions to draw; the last episode is cut there."""
    policy: str | None = None
    """Target of the guidance: run:DIR or DIR, sb3:FILE.zip, py:PACKAGE.MODULE:NAME."""
    guidance: float = 0.0
    """Coefficient of the guidance; 0 is unguided, the paper's is 1 with --normalize-guidance."""
    guidance_mode: Literal["code", "score"] = "code"
    """code: gradient steps on noisy actions, as published; score: add the policy's score to the model's."""
    normalize_guidance: bool = False
    """Divide each trajectory's gradient by its norm (mode code)."""
    denoised_guidance: bool = False
    """Take the gradient at the denoised trajectory (mode code)."""
    step_independent_guidance: bool = False
    """Scale the coefficient by 256 / --sampling-steps, so that its whole push does not depend on them (mode code)."""
    sampling_steps: int = 256
    """Noise levels of the sampler; each costs two passes of the network, one with --first-order."""
    first_order: bool = False
    """Euler steps instead of Heun's: half the time, narrower samples."""
    churn: float = 80.0
    """Noise added in between; 0 is the deterministic sampler."""
    legacy_euler_base: bool = False
    """The official code's Euler step, for reproduction only; refused where it collapses."""
    allow_collapse: bool = False
    """Use it even there."""
    length: int = 0
    """Steps of a trajectory; 0: as the model was trained. Each gives one transition less."""
    drop_terminal: bool = False
    """Drop a last step that the model calls terminal, as the official code does, and with it all terminations."""
    batch: int = 256
    """Trajectories drawn together; another number gives other data."""
    seed: int = 0
    """Seed of every draw."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    threads: int = 1
    """CPU threads; the last digits depend on them."""
    overwrite: bool = False
    """Replace the output if it exists."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""

    def plan(self) -> Plan:
        """How trajectories are drawn, checked."""
        guidance = Guidance(
            self.guidance,
            self.guidance_mode,
            self.normalize_guidance,
            self.denoised_guidance,
            step_independent=self.step_independent_guidance,
        )
        if (self.policy is None) != (self.guidance == 0.0):
            raise ConfigError("--policy and --guidance go together: a target, and how strongly to follow it")
        if guidance != Guidance(self.guidance) and self.guidance == 0.0:
            raise ConfigError("how the guidance is made has no effect without --policy and --guidance")
        sampler = Sampler(
            *(
                self.sampling_steps,
                not self.first_order,
                self.churn,
                self.legacy_euler_base,
                self.allow_collapse,
            ),
            guidance,
        )
        return Plan(sampler, self.length, self.batch, not self.drop_terminal, self.seed)


def main(argv: list[str]) -> int:
    """``offrl generate ...``."""
    o = parse(GenerateOptions, "offrl generate", argv)
    if o.threads < 1:
        raise ConfigError(f"threads must be 1 or more, got {o.threads}")
    plan, out = o.plan(), Path(o.out)
    if out.suffix not in (".hdf5", ".h5"):
        raise ConfigError(f"--out must be FILE.hdf5, got {o.out!r}")
    check_target(o.out, overwrite=o.overwrite)
    torch.set_num_threads(o.threads)
    device = torch.device(resolve_device(o.device))
    run = RunDir(o.run)
    model, policy = load_model(o.run).to(device), target(o.policy, run, device)
    check_policy(model, policy)
    facts = provenance(run, model, plan, o.policy, policy)
    began = time.monotonic()
    with progress_bar(hidden=o.quiet) as bar:
        task = bar.add_task(f"drawing from {o.run.name}", total=o.transitions, rate=0.0)

        def show(done: float) -> None:
            bar.update(task, completed=done, rate=done / max(time.monotonic() - began, 1e-9))

        fields = generate(
            model,
            o.transitions,
            plan,
            policy,
            folder=parts_folder(out),
            identity={"provenance": facts["synthetic"], "threads": o.threads, "device": device.type},
            progress=show,
        )
    dataset = OfflineDataset.from_fields(fields, facts)
    write_d4rl(dataset, out)
    drop_parts(out)
    if not o.quiet:
        ended = int(dataset.fields["terminated"].sum())
        print(f"{dataset.describe()}, {ended} terminated; {time.monotonic() - began:.0f} s")
        print(f"written to {o.out}")
    return 0


def load_model(run: Path) -> TrajectoryModel:
    """The trajectory model of a run.

    Raises:
        ConfigError: the run is of another method.
    """
    found = load_source(f"run:{run}", EnvSpec(env_id=""))
    if not isinstance(found, TrajectoryModel):
        raise ConfigError(f"{run} holds no trajectory model: train policy_guided_diffusion first")
    return found


def target(source: str | None, run: RunDir, device: torch.device) -> Policy | None:
    """The target policy that ``source`` names."""
    if source is None:
        return None
    config = run.config
    flatten = tuple(config["env_flatten"])
    spec = EnvSpec(env_id=config["env_id"] or "", kwargs=config["env_kwargs"], flatten=flatten)
    policy = load_source(source, spec)
    if isinstance(policy, TrajectoryModel):
        raise ConfigError(f"{source} is a trajectory model itself, not a policy")
    return policy.to(device)


def provenance(
    run: RunDir, model: TrajectoryModel, plan: Plan, source: str | None, policy: Policy | None
) -> dict[str, Any]:
    """Metadata of the generated dataset: its environment, and under ``synthetic`` where it comes from."""
    config = run.config
    facts: dict[str, Any] = {
        "action_low": model.action_low.tolist(),
        "action_high": model.action_high.tolist(),
        "synthetic": {
            "algorithm": config["algorithm"],
            "run": run.path.name,
            "model_sha256": fingerprint(model),
            "dataset_name": config["dataset_name"],
            "dataset_sha256": config["dataset_sha256"],
            "policy": source,
            "policy_sha256": None if policy is None else fingerprint(policy),
            "plan": asdict(plan),
        },
    }
    if config["env_id"]:
        facts |= {"env_id": config["env_id"], "env_kwargs": config["env_kwargs"]}
    if config["env_flatten"]:
        facts["flatten"] = config["env_flatten"]
    if config["reference_returns"]:
        facts["reference_returns"] = config["reference_returns"]
    return facts
