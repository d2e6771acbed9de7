"""benchmarks/llm.md from the raw files of bench_llm.py alone: tables, curves, verdicts, and which cells are missing."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench_llm import EXPERIMENTS, PAGE, VARIANCE, Arm, Experiment, Sizes

Record = dict[str, Any]
Runs = dict[str, dict[int, Record]]
"""Of an experiment: arm -> seed -> record."""
LAST = 3
SPEED = "llm_speed.json"


def late(name: str) -> Callable[[Record], float]:
    """Mean of the last evaluations."""
    return lambda record: statistics.fmean([p[name] for p in record["points"] if name in p][-LAST:])


def end(name: str) -> Callable[[Record], float]:
    """At the end of the run."""
    return lambda record: float(record["points"][-1][name])


def area(name: str) -> Callable[[Record], float]:
    """Mean over the whole run."""
    return lambda record: statistics.fmean(p[name] for p in record["points"][1:] if name in p)


def long_prompts(record: Record) -> float:
    """Accuracy on seven and eight digits."""
    return statistics.fmean((late("level_7")(record), late("level_8")(record)))


def variation(record: Record) -> float:
    """Coefficient of variation of the gradient's norm between 20 and 75 % of the updates."""
    norms = record["grad_norms"]
    kept = norms[len(norms) // 5 : 3 * len(norms) // 4]
    return statistics.stdev(kept) / statistics.fmean(kept)


def best(record: Record) -> float:
    """Highest accuracy of an evaluation."""
    return max(point["sampled"] for point in record["points"])


METRICS: dict[str, Callable[[Record], float]] = {
    "accuracy": late("sampled"), "pass@16": late("pass_at_16"), "entropy": late("entropy"),
    "zero variance": late("zero_variance"), "gradient norm cv": variation, "log ratio": area("log_ratio"),
    "engine gap": area("engine_gap"), "best": best, "fall": lambda r: best(r) - end("sampled")(r),
    "rejected": area("rejected"), "7-8 digits": long_prompts, "maj@8": late("maj_at_8"),
    "answer entropy": late("answer_entropy"), "tokens kept": area("tokens_kept"), "tv to target": end("tv"),
    "gap": end("gap"), "exact reward": end("reward"), "exact kl": end("kl_to_base"), "format": late("reward_format"),
    "length": late("reward_length"), "correct": late("reward_correct"), "correct, area": area("reward_correct"),
    "held out": end("held_out"), "others": end("others"),
    "relative variance": lambda r: float(r["relative_variance"]),
}  # fmt: skip
ABOUT = {
    "accuracy": "sampled accuracy, mean of the last three of ten evaluations",
    "pass@16": "likewise",
    "entropy": "nats a token, mean of the last three tenths of training",
    "zero variance": "share of groups with equal rewards, likewise",
    "gradient norm cv": "standard deviation over mean of the gradient's norm between 20 and 75 % of the updates",
    "log ratio": "mean |log pi - log pi_old| during updates",
    "engine gap": "mean |log pi - log mu|, mu being what sampled",
    "fall": "best evaluation less the last",
    "rejected": "share of tokens left out",
    "tokens kept": "share of tokens learnt from",
    "answer entropy": "of eight sampled answers, in bits",
    "maj@8": "whether the most frequent of eight sampled answers is right",
    "tv to target": "exact total variation to the best policy at the end",
    "gap": "exact E r - beta KL below its best value at the end",
    "correct, area": "mean over all of training",
    "held out": "accuracy at the end on prompts that the start never solves",
}
BASELINES = ("grpo", "dr_grpo", "reinforce")


@dataclass(frozen=True)
class Condition:
    """Something about an arm that its claim implies."""

    experiment: str
    arm: str
    metric: str
    rule: Literal["above", "below", "no worse"]
    """In every seed; or in the mean over seeds by no more than the margin."""
    than: str | float
    """An arm, seed by seed, or a number."""
    margin: float = 0.0
    factor: float = 1.0

    def text(self) -> str:
        """In words."""
        other = self.than if isinstance(self.than, str) else f"{self.than:g}"
        times = "" if self.factor == 1.0 else f"{self.factor:g} times "
        if self.rule == "no worse":
            return f"{self.metric} at most {self.margin:g} below {other}'s"
        return f"{self.metric} {self.rule} {times}{other}" + ("'s" if isinstance(self.than, str) else "")

    def judged(self, runs: Runs, seeds: tuple[int, ...]) -> tuple[bool | None, str]:
        """Whether it holds (None: cells are missing), and the differences seed by seed."""
        mine = runs.get(self.arm, {})
        theirs = runs.get(self.than, {}) if isinstance(self.than, str) else dict.fromkeys(seeds)
        if any(seed not in mine or seed not in theirs for seed in seeds):
            return None, "not run yet"
        metric = METRICS[self.metric]
        pairs = [
            (metric(mine[s]), self.factor * (metric(theirs[s]) if isinstance(self.than, str) else float(self.than)))
            for s in seeds
        ]  # fmt: skip
        shown = ", ".join(f"{x:.3g}/{y:.3g}" for x, y in pairs)
        if self.rule == "no worse":
            return statistics.fmean(x - y for x, y in pairs) >= -self.margin, shown
        return all((x > y) if self.rule == "above" else (x < y) for x, y in pairs), shown


def over(
    experiment: str, arm: str, metric: str, rule: Literal["above", "below", "no worse"],
    others: tuple[str, ...] = BASELINES, **given: float,
) -> tuple[Condition, ...]:  # fmt: skip
    """The same against several arms."""
    return tuple(Condition(experiment, arm, metric, rule, other, **given) for other in others)


@dataclass(frozen=True)
class Claim:
    """What a method is for, as this page tests it."""

    method: str
    says: str
    conditions: tuple[Condition, ...]
    tried: str = ""
    """What was tried besides, by hand."""


CLAIMS = (
    Claim(
        "hpt", "prompts that never succeed are learnt from demonstrations, the others kept",
        (*over("t1-held-out", "hpt", "held out", "above"), Condition("t1-held-out", "hpt", "others", "above", 0.95)),
    ),
    Claim(
        "minirl", "most stable with an engine that rounds; replay keeps ratios near 1, R3 most with four updates", (
            *over("t1-moe", "minirl-R3", "accuracy", "above"),
            *over("t1-moe", "minirl-R3", "log ratio", "below", ("minirl-none",)),
            *over("t1-moe", "minirl-R2", "log ratio", "below", ("minirl-none",)),
            *over("t1-moe", "minirl-R3", "engine gap", "below", ("minirl-none",)),
            *over("t1-moe", "minirl-R3", "accuracy", "no worse", ("minirl-R2",), margin=0.01),
        ),
    ),
    Claim("pacs", "keeps entropy, so pass@k is higher at equal accuracy", (
        *over("t1-four", "pacs", "pass@16", "above", ("grpo", "dr_grpo")),
        *over("t1-four", "pacs", "entropy", "above", ("grpo", "dr_grpo")),
        *over("t1-four", "pacs", "accuracy", "no worse", margin=0.01),
    )),
    Claim("adora", "prompts that are useful now weigh more: the hard half improves first", (
        *over("t2", "adora", "7-8 digits", "above"), *over("t2", "adora", "accuracy", "no worse", margin=0.01),
    )),
    Claim("oblr_po", "its baseline lowers the gradient's variance, and training is no worse for it", (
        *over("variance", "oblr_po-energy", "relative variance", "below", ("reinforce", "rloo", "dr_grpo")),
        *over("t1", "oblr_po", "accuracy", "no worse", margin=0.01),
    )),
    Claim("capo", "no collapse at learning rates at which the base method collapses", tuple(
        condition
        for lr in ("t2-lr0.001", "t2-lr0.003")
        for condition in (*over(lr, "capo", "accuracy", "above"), Condition(lr, "capo", "rejected", "below", 0.08))
    )),
    Claim("copg", "reaches the best policy from samples of another one", over("t3-offline", "copg", "gap", "below")),
    Claim("d3s", "as good as GRPO from fewer tokens", (
        *over("t2", "d3s", "accuracy", "no worse", ("grpo",), margin=0.01),
        Condition("t2", "d3s", "tokens kept", "below", 0.5),
    )),
    Claim("copo", "more agreement: higher maj@8 where many groups are all right or all wrong", (
        *over("t2", "copo", "maj@8", "above", (*BASELINES, "dapo")),
        *over("t2", "copo", "accuracy", "no worse", margin=0.01),
    )),
    Claim("beta_norm", "steadier gradient norms at equal accuracy", (
        *over("t1", "beta_norm", "gradient norm cv", "below", ("grpo",)),
        *over("t1", "beta_norm", "accuracy", "no worse", margin=0.01),
    )),
    *(
        Claim(name, "holds entropy at three times GRPO's or more, without losing accuracy, and pass@16 gains", (
            *over("t1-four", name, "entropy", "above", ("grpo",), factor=3.0),
            *over("t1-four", name, "accuracy", "no worse", margin=0.01),
            *over("t1-four", name, "pass@16", "no worse", ("grpo",)),
        ))
        for name in ("clip_cov", "kl_cov")
    ),
    Claim("p3o", "indifferent to a reward's shift by prompt: nearer to the best policy than without pairs", tuple(
        condition
        for beta in ("0.5", "1", "2")
        for condition in (
            *over(f"t3-beta{beta}", "p3o", "gap", "below"),
            *over(f"t3-beta{beta}", "p3o", "gap", "below", ("rloo",), factor=1.5),
        )
    )),
    Claim("fdpg", "every divergence finds a known target, nearer than reward maximisation with a KL does", tuple(
        condition
        for d in ("js", "kl", "reverse_kl", "tv")
        for condition in (
            Condition("t3-beta1", f"fdpg-{d}", "tv to target", "below", 0.02),
            *over("t3-beta1", f"fdpg-{d}", "tv to target", "below"),
        )
    )),
    Claim("real", "entropy at least GRPO's and GSPO's, accuracy not below", (
        *over("t1-four", "real", "entropy", "above", ("grpo", "gspo")),
        *over("t1-four", "real", "accuracy", "no worse", (*BASELINES, "gspo"), margin=0.01),
    )),
    Claim("gdpo", "no reward drowns another: format is learnt, and correctness faster", (
        Condition("t5", "gdpo", "format", "above", 0.95),
        *over("t5", "gdpo", "correct, area", "above"), *over("t5", "gdpo", "correct", "no worse", margin=0.01),
    )),
)  # fmt: skip


def read(sizes: Sizes, experiment: str, arms: tuple[str, ...]) -> Runs:
    """Raw files of an experiment."""
    found: Runs = {}
    for arm in arms:
        for seed in sizes.seeds:
            path = sizes.raw / f"{experiment}-{arm}-{seed}.json"
            if path.exists():
                found.setdefault(arm, {})[seed] = json.loads(path.read_text())
    return found


def read_all(sizes: Sizes) -> dict[str, Runs]:
    """Of every experiment, and the measurement of variances as one of them."""
    found = {e.name: read(sizes, e.name, tuple(arm.name for arm in e.arms)) for e in EXPERIMENTS.values()}
    paths = {seed: sizes.raw / f"variance-{seed}.json" for seed in sizes.seeds}
    records = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
    found["variance"] = {
        name: {s: r["rows"][name] for s, r in records.items()} for name in VARIANCE if records
    }
    return found


def verdict(claim: Claim, runs: dict[str, Runs], sizes: Sizes) -> tuple[str, list[str]]:
    """Shown, not shown here, or not run yet; with a line a condition."""
    judged = [(c, *c.judged(runs[c.experiment], sizes.seeds)) for c in claim.conditions]
    lines = [
        f"  * {'?' if holds is None else 'yes' if holds else 'no'}: `{c.experiment}` {c.arm}: {c.text()} ({numbers})"
        for c, holds, numbers in judged
    ]
    results = [holds for _, holds, _ in judged]
    word = "not run yet" if None in results else "shown" if all(results) else "not shown here"
    if word == "not shown here" and any(results):
        word = f"not shown here ({sum(map(bool, results))} of {len(results)} conditions hold)"
    return word, lines


def table(e: Experiment, runs: Runs, sizes: Sizes) -> list[str]:
    """Mean and range over seeds of each arm; differences to the baselines of the first column."""
    lines = [
        f"| arm | learning rate | seeds | {' | '.join(e.columns)} |",
        "|---" * (3 + len(e.columns)) + "|",
    ]
    for arm in e.arms:
        records = [*runs.get(arm.name, {}).values()]
        path = sizes.raw / f"{e.name}-{arm.name}-lr.json"
        lr = f"{json.loads(path.read_text())['lr']:g}" if path.exists() else "not searched yet"
        cells = [spread(METRICS[name], records) for name in e.columns]
        lines.append(f"| {arm.name} | {lr} | {len(records)} | {' | '.join(cells)} |")
    return [*lines, "", *differences(e, runs)]


def spread(metric: Callable[[Record], float], records: list[Record]) -> str:
    """Mean [lowest, highest]."""
    try:
        values = [metric(record) for record in records]
    except (KeyError, statistics.StatisticsError):  # this arm does not measure it
        return ""
    if not values:
        return "not run yet"
    return f"{statistics.fmean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def differences(e: Experiment, runs: Runs) -> list[str]:
    """Paired, seed by seed, of the first column."""
    name, lines = e.columns[0], []
    for arm in (a.name for a in e.arms if a.name not in BASELINES):
        parts = []
        for other in BASELINES:
            seeds = sorted(runs.get(arm, {}).keys() & runs.get(other, {}).keys())
            gaps = [METRICS[name](runs[arm][s]) - METRICS[name](runs[other][s]) for s in seeds]
            if gaps:
                by_seed = ", ".join(f"{gap:+.3f}" for gap in gaps)
                parts.append(f"{other} {statistics.fmean(gaps):+.3f} ({by_seed})")
        lines += [f"* {arm}, {name} less that of: {'; '.join(parts)}"] if parts else []
    return [*lines, ""] if lines else []


def figure(e: Experiment, runs: Runs, path: Path) -> None:
    """Two curves over rollouts: mean and range over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "llm", "font.size": 8}
    drawn, axes = pyplot.subplots(1, 2, figsize=(8, 2.8))
    for axis, name in zip(axes, e.curves, strict=True):
        for number, (arm, by_seed) in enumerate(runs.items()):
            points = [[p for p in r["points"] if name in p] for r in by_seed.values()]
            if not points[0]:
                continue
            length = min(map(len, points))
            values = [[run[i][name] for run in points] for i in range(length)]
            x = [points[0][i]["rollouts"] or 0 for i in range(length)]
            if arm == "sft":  # it samples nothing: its steps beside those of the others
                whole = e.steps * e.options["prompts"] * e.options["group"]
                x = [i / max(length - 1, 1) * whole for i in range(length)]
            style = "--" if arm in BASELINES else "-"
            axis.plot(
                x, [statistics.fmean(v) for v in values], style, color=f"C{number % 10}", lw=1, label=arm
            )
            axis.fill_between(
                x, [min(v) for v in values], [max(v) for v in values], color=f"C{number % 10}", alpha=0.1
            )
        axis.set(xlabel="rollouts", ylabel=name.replace("_", " "))
    axes[0].legend(fontsize=6)
    drawn.tight_layout()
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)


def setting(e: Experiment) -> str:
    """Of an experiment, in a line."""
    o = e.options
    extra = ", ".join(f"{k} {v}" for k, v in o.items() if k not in ("task", "prompts", "group"))
    words = [f"{e.steps} batches of {o['prompts']} prompts x {o['group']} responses"]
    words += [extra] if extra else []
    words += [f"start: supervised ({e.start})"] if e.start else []
    words += [f"learning rates {', '.join(f'{lr:g}' for lr in e.lrs)}"]
    return "; ".join(words) + ". " + " ".join(own(arm) for arm in e.arms if own(arm))


def own(arm: Arm) -> str:
    """Settings of an arm that are not the method's defaults."""
    given = arm.settings | arm.options
    if arm.calibrate:
        given |= {
            "bounds": f"{arm.calibrate:g} times the 95th percentiles of its first 20 moves on the search seed"
        }
    return f"{arm.name}: {', '.join(f'{k} {v}' for k, v in given.items())}." if given else ""


def speed(sizes: Sizes) -> list[str]:
    """What scripts/bench_llm_speed.py measured."""
    path = sizes.raw.parent / SPEED
    if not path.exists():
        return ["`python scripts/bench_llm_speed.py`: not run yet."]
    found = json.loads(path.read_text())
    lines = ["| engine | seconds a step (median of the runs) | runs | peak memory, MB |", "|---|---|---|---|"]
    for name, row in found["engines"].items():
        runs = ", ".join(f"{1e3 * x:.1f}" for x in row["seconds"])
        lines.append(
            f"| {name} | {statistics.median(row['seconds']):.4f} | {runs} ms "
            f"| {statistics.median(row['peak_mb']):.0f} |"
        )
    v = found["versions"]
    return [
        f"`python scripts/bench_llm_speed.py`: {found['about']}. Fresh processes, one after the other in turn.",
        "", *lines, "",
        f"Offrl is {found['ratio']:.2f} times as fast (wanted: 1.3), with {found['memory']:.2f} of the memory. "
        f"torch {v['torch']}, trl {found['trl']}, {v['cpu']}, {v['threads']} thread.",
    ]  # fmt: skip


NOT_RUN = """## With a real model: not run

On a GPU, three seeds of each, SmolLM2-135M-Instruct on word problems:

```console
$ for seed in 0 1 2; do
    run="--model SmolLM2-135M-Instruct.Q4_1.gguf --task arithmetic --steps 300 --prompts 16 --group 8 --lr 1e-5"
    run="$run --seed $seed --out runs"
    offrl llm train grpo $run
    offrl llm train beta_norm $run
    offrl llm train clip_cov $run --minibatches 4
    offrl llm train gdpo $run --reward integer --reward 'regex:^.{0,40}$' --weights 1 0.5
  done
$ offrl llm eval runs/grpo/arithmetic/seed0-... --k 16
```
"""


def head(runs: dict[str, Runs], sizes: Sizes) -> list[str]:
    """What the page is, and the verdicts."""
    judged = [(claim, *verdict(claim, runs, sizes)) for claim in CLAIMS]
    rows = [f"| {c.method} | {c.says} | {word} |" for c, word, _ in judged]
    about = "; ".join(f"{name}: {text}" for name, text in ABOUT.items())
    return [
        "# Language-model methods",
        "",
        "Regenerate: `python scripts/bench_llm.py page`. Raw numbers: `benchmarks/raw/llm/`.",
        "",
        "Each method on the task where its claim would show, with GRPO, Dr. GRPO and REINFORCE (baseline: the batch's "
        "mean), run once for all methods of an experiment. Equal rollouts for all arms; learning rates chosen on seed "
        f"{sizes.search_seed} by half a run each, which is not reported; seeds {', '.join(map(str, sizes.seeds))}. "
        "Tables: mean [lowest, highest] over seeds. Models have 84 thousand parameters; what is shown here "
        "is shown for them. An evaluation's accuracy has a standard error of about 0.01.",
        "",
        f"Columns. {about[0].upper()}{about[1:]}.",
        "",
        "## Verdicts",
        "",
        "A claim is *shown* if all its conditions hold: 'above' and 'below' in every seed, paired; 'at most x below' "
        "in the mean over seeds. Numbers are the method's and the other's, seed by seed.",
        "",
        "| method | claim | verdict |",
        "|---|---|---|",
        *rows,
        "",
        *(line for c, word, lines in judged for line in (f"* **{c.method}**: {word}. {c.tried}".rstrip(), *lines)),
        "",
    ]  # fmt: skip


def variances(runs: Runs) -> list[str]:
    """The table of the fixed policy."""
    lines = ["| estimator | tr Cov / \\|mean\\|^2 of the gradient |", "|---|---|"]
    lines += [
        f"| {n} | {spread(METRICS['relative variance'], [*runs.get(n, {}).values()])} |" for n in VARIANCE
    ]
    return [
        "## t1, variance at a fixed policy", "",
        f"A policy after 75 batches of Dr. GRPO; {Sizes().resamples} batches of 32 x 16, the same for every row.", "",
        *lines, "",
    ]  # fmt: skip


def page(sizes: Sizes) -> str:
    """The whole page."""
    runs = read_all(sizes)
    lines = head(runs, sizes)
    for e in EXPERIMENTS.values():
        lines += [f"## {e.title}", "", f"`{e.name}`: {setting(e)}", "", *table(e, runs[e.name], sizes)]
        if any(runs[e.name].values()):
            figure(e, runs[e.name], PAGE.parent / f"llm-{e.name}.svg")
            lines += [f"![Curves](llm-{e.name}.svg)", ""]
    lines += [*variances(runs["variance"]), "## Speed and memory beside TRL", "", *speed(sizes), "", NOT_RUN]
    records = [r for e in EXPERIMENTS for by in runs[e].values() for r in by.values()]
    where = {
        f"offrl {v['offrl']} ({v['commit']}), torch {v['torch']}, {v['cpu']}, {v['threads']} thread"
        for v in (r["versions"] for r in records)
    }
    spent = sum(r["cpu_seconds"] for r in records) / 3600
    lines += ["## Commits and hardware", "", *(f"* {line}" for line in sorted(where))]
    lines += [f"* {spent:.2f} CPU-hours of reported runs"]
    missing = [f"{e.name}-{a.name}-{s}" for e in EXPERIMENTS.values() for a in e.arms for s in sizes.seeds
               if s not in runs[e.name].get(a.name, {})]  # fmt: skip
    lines += [f"* without a result: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"
