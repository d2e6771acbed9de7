"""The demo behind 'make demo': trains PRDC with three seeds on the bundled data, two processes at a time.

Writes into --out: the run directories, report.html, curves.svg and video.mp4, and prints where they are and whether
PRDC beats the data that it learned from.
"""

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path

DATASET = "builtin:double-pendulum-demo"
SEEDS = (0, 1, 2)


def train_seed(job: tuple[int, int, str]) -> str:
    """Train one seed in this process; returns its run directory."""
    seed, steps, out = job
    from offrl.api import train

    result = train(
        "prdc",
        DATASET,
        seed=seed,
        steps=steps,
        out=out,
        threads=1,
        eval_every=max(steps // 5, 1),
        eval_episodes=5,
        final_episodes=30,
        log_every=max(steps // 20, 1),
        checkpoint_every=steps,
        progress=seed == SEEDS[0],
    )
    return str(result.directory)


def lower_bound(returns: "list[float]") -> float:
    """Lower end of the two-sided 95 % interval of the mean (normal approximation)."""
    import numpy as np

    values = np.asarray(returns)
    return float(values.mean() - 1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> int:
    """Train, report, film."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--no-video", action="store_true", help="leave the video out (software rendering takes a minute)"
    )
    o = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the training processes

    print(f"training PRDC on {DATASET}, seeds {SEEDS}, {o.steps} steps each, {o.jobs} at a time", flush=True)
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(o.jobs, maxtasksperchild=1) as pool:
        jobs = [(seed, o.steps, str(o.out / "runs")) for seed in SEEDS]
        runs = [Path(run) for run in pool.map(train_seed, jobs, chunksize=1)]
    print(f"trained in {time.monotonic() - began:.0f} s")

    import numpy as np

    from offrl.training.run_dir import RunDir

    wins = 0
    for seed, run in zip(SEEDS, runs, strict=True):
        with np.load(run / "final_returns.npz") as final:
            returns = final["returns"]
        data_mean, bound = RunDir(run).config["dataset_return_mean"], lower_bound(returns)
        wins += bound > data_mean
        print(
            f"seed {seed}: mean return {returns.mean():.0f} over {len(returns)} episodes, "
            f"95 % lower bound {bound:.0f}, data {data_mean:.0f}: "
            f"{'better than its data' if bound > data_mean else 'NOT clearly better'}"
        )
    _artefacts(o.out, runs, video=not o.no_video)
    print(f"report  {o.out / 'report.html'}\ncurves  {o.out / 'curves.svg'}")
    return 0 if wins == len(SEEDS) else 1


def _artefacts(out: Path, runs: list[Path], *, video: bool) -> None:
    from offrl.errors import USER_ERRORS
    from offrl.evaluation.report import save_curves, write_report
    from offrl.evaluation.runs import read_run

    if video:
        from offrl.evaluation.environments import env_spec
        from offrl.evaluation.video import record
        from offrl.nn.policy import load_policy
        from offrl.training.run_dir import RunDir

        spec = env_spec(RunDir(runs[0]).config["env_id"])
        try:
            record(load_policy(runs[0]), spec, runs[0] / "video.mp4", seed=1)
            print(f"video   {runs[0] / 'video.mp4'}")
        except (*USER_ERRORS, RuntimeError) as error:
            print(f"no video: {error}")
    records = [read_run(run) for run in runs]
    save_curves(records, out / "curves.svg")
    write_report(records, out / "report.html", last_k=3)


if __name__ == "__main__":
    sys.exit(main())
