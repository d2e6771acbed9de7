"""The parts of a run at work: which prompts, how many responses to each, what is learnt from their success."""

import copy
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups
from offrl.llm.evaluate import FEW_ROWS, LARGE
from offrl.llm.method import TextRollouts
from offrl.llm.prompts import knapsack
from offrl.llm.prompts.history import History
from offrl.llm.prompts.pool import Pool, Walk
from offrl.llm.prompts.scaffold import Hinter, Scaffold
from offrl.llm.prompts.stages import Stages, thirds
from offrl.llm.prompts.v0 import V0
from offrl.llm.prompts.vas import VAS
from offrl.llm.rollouts import widened
from offrl.llm.tasks.task import Task
from offrl.llm.text import Prompts, Responses
from offrl.training.seeding import stream

Respond = Callable[[Prompts, int], Responses]
"""(prompts, copies) -> responses of the policy that samples."""


class Sampler(Protocol):
    """Draws rows of a pool."""

    def draw(self, count: int, allowed: Tensor) -> Tensor:
        """(count,) of the (size,) bool allowed rows."""

    def state_dict(self) -> dict[str, Any]:
        """What the next draw depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


class Predictor(Protocol):
    """Says how likely prompts are to be solved."""

    def predict(self, prompts: Prompts, rows: Any) -> Tensor:
        """(N,) rates of prompts, at these rows of the pool if there is one; NaN: unknown."""

    def observe(self, prompts: Prompts, rows: Any, right: Tensor, tried: Tensor) -> None:
        """``right`` of ``tried`` responses to each prompt succeeded."""

    def state_dict(self) -> dict[str, Any]:
        """What the next prediction depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


class PromptParts:
    """Chooses prompts.

    Args:
        task: of the run.
        options: of the run.
        policy: as training begins.
    """

    def __init__(self, task: Task, options: Any, policy: Any) -> None:
        self.task, self.options, self.number = task, options, options.prompts
        self.generator = stream(options.seed, "prompts")
        self.pool = pool_of(task, options)
        walk = stream(options.seed, "walk")
        self.vas: VAS | None = None
        self.sampler: Sampler | None = None
        self.stages: Stages | None = None
        self.predictor: Predictor | None = None
        self.scaffold: Scaffold | None = None
        if self.pool is not None:
            size = len(self.pool)
            if options.sampler == "vas":
                self.vas = VAS(size, options.vas_share, options.vas_diversity, walk)
            self.sampler = self.vas or Walk(size, walk)
            many = sum(p.numel() for p in policy.parameters()) > LARGE
            self.at_once = FEW_ROWS if many else size * options.vas_rollouts
        elif size := getattr(task, "size", 0):  # a data set; its batches are no wider than their own prompts
            self.sampler = Walk(size, walk)
        if options.curriculum == "stages":
            self.stages = stages_of(task, self.pool, options)
        if options.allocator == "knapsack" and options.predictor == "v0":
            frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}
            self.predictor = V0(copy.deepcopy(policy, frozen), options.v0_context, options.v0_weights)
        elif options.allocator == "knapsack":
            self.predictor = History(len(self.pool or ()), options.history_decay)
        if options.scaffold == "hints":
            first = round(options.hint_exempt * options.steps)
            self.scaffold = Scaffold(hinter_of(task, options, policy), first)
        self.copies: int | Tensor = options.group
        self.rows: Tensor | None = None
        self.reported: dict[str, Tensor] = {}
        self.predicted: Tensor | None = None
        self.seen: list[tuple[Tensor, ...]] = []

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what its parts report."""
        names = (
            *(VAS.metrics if self.vas else ()), *(Stages.metrics if self.stages else ()),
            *(Scaffold.metrics if self.scaffold else ()),
        )  # fmt: skip
        return (*names, *(("budget_least", "budget_most", "prediction_error") if self.predictor else ()))

    def refreshed(self, step: int, respond: Respond) -> dict[str, Tensor]:
        """Scores of all prompts anew, where they are due."""
        if self.vas is None or self.pool is None:
            return {}
        if step % self.options.vas_every == 0:
            self.reported = self.vas.refresh(*self._scored(self.pool.prompts, respond))
        return self.reported

    def _scored(self, prompts: Prompts, respond: Respond) -> tuple[Tensor, Responses]:
        """Successes and responses to all prompts, of a model of many parameters some at a time."""
        copies = self.options.vas_rollouts
        success, found = [], []
        for rows in torch.arange(len(prompts)).split(max(self.at_once // copies, 1)):
            responses = respond(prompts.rows(rows), copies)
            asked = prompts.rows(rows).to(responses.tokens.device).repeat(copies)
            success.append(self.task.success(asked, responses))
            found.append(responses)
        names = "tokens", "mask", "log_probs"
        parts = ([getattr(responses, name) for responses in found] for name in names)
        wide = (torch.cat(widened(part, 0, on_the_left=False)) for part in parts)
        return torch.cat(success), Responses(*wide)

    def ask(self) -> tuple[Prompts, int | Tensor]:
        """Prompts of a batch, on the CPU, and how many responses each of them gets."""
        if self.sampler is None:
            prompts = self.task.prompts(self.number, self.generator)
        elif self.pool is None:
            everything = torch.ones(self.task.size, dtype=torch.bool)  # type: ignore[attr-defined]
            prompts = self.task.chosen(self.sampler.draw(self.number, everything))  # type: ignore[attr-defined]
        else:
            everything = torch.ones(len(self.pool), dtype=torch.bool)
            parts = self.stages.parts(self.number) if self.stages else [(self.number, everything)]
            self.rows = torch.cat([self.sampler.draw(count, allowed) for count, allowed in parts])
            prompts = self.pool.prompts.rows(self.rows)
        self.copies = self.options.group
        if self.predictor is not None:
            self.predicted = self.predictor.predict(prompts, self.rows)
            self.copies = self._budget(self.predicted)
        return prompts, self.copies

    def _budget(self, rates: Tensor) -> Tensor:
        """(N,) responses, --group of them on average."""
        o, p = self.options, rates.numpy()
        known = ~np.isnan(p)
        counts = np.full(len(p), o.group)
        total = o.group * int(known.sum())
        if o.budget_value == "information":
            counts[known] = knapsack.allocate(p[known], total, o.budget_low, o.budget_high)
        else:
            n = np.arange(o.budget_low, min(o.budget_high, total) + 1, dtype=np.float64)
            values = knapsack.failures(n, p[known][:, None])
            counts[known] = knapsack.exact(values, total, o.budget_low)
        return torch.from_numpy(counts)

    def observe(self, prompts: Prompts, batch: TextRollouts) -> dict[str, Tensor]:
        """What the responses to the prompts asked last came to; groups are in the order of the prompts."""
        if self.predictor is None and self.stages is None:
            return {}
        assert batch.success is not None
        groups = Groups(batch.group_ids)
        right, tried = groups.sum(batch.success.double()).cpu(), groups.size.cpu()
        if self.stages is not None and self.rows is not None:
            self.seen.append((self.rows, right, tried))
        if self.predictor is None or self.predicted is None:
            return {}
        errors = (self.predicted - right / tried).abs()
        known = ~self.predicted.isnan()
        self.predictor.observe(prompts, self.rows, right, tried)
        found = {"budget_least": tried.min().double(), "budget_most": tried.max().double()}
        return found | ({"prediction_error": errors[known].mean()} if known.any() else {})

    def stepped(self) -> dict[str, Tensor]:
        """All prompts of a step were answered."""
        if self.stages is None:
            return {}
        rows, right, tried = map(torch.cat, zip(*self.seen, strict=True))
        self.seen = []
        return self.stages.observe(rows, right, tried)

    def even(self, advantages: Tensor | None, group_ids: Tensor) -> Tensor | None:
        """Advantages with which all prompts weigh the same, where they have unequal numbers of responses."""
        if self.predictor is None or advantages is None:
            return advantages
        weights = knapsack.even(group_ids).to(advantages)
        return advantages * weights.view(-1, *[1] * (advantages.dim() - 1))

    def rescued(
        self, step: int, prompts: Prompts, batch: TextRollouts, respond: Any, rewarded: Any
    ) -> tuple[TextRollouts, dict[str, Tensor]]:
        """The batch with what hints made of groups that failed; see ``Scaffold.rescue``."""
        if self.scaffold is None:
            return batch, {}
        batch = batch.replace(
            sources=batch.group_ids
        )  # in every sampling of a step, so that they can be joined
        if step < self.scaffold.first:
            return batch, dict.fromkeys(Scaffold.always, batch.rewards.new_zeros((), dtype=torch.float64))
        return self.scaffold.rescue(prompts, batch, respond, rewarded)

    def _parts(self) -> dict[str, Any]:
        names = ("sampler", "stages", "predictor", "scaffold")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything that its next choice depends on."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        reported = {name: float(value) for name, value in self.reported.items()}
        return state | {"generator": self.generator.get_state(), "reported": reported}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"].cpu())
        reported = state["reported"].items()
        self.reported = {name: torch.tensor(value, dtype=torch.float64) for name, value in reported}


def pool_of(task: Task, options: Any) -> Pool | None:
    """The prompts that come again; None: there are always new ones, and no part needs them again.

    Raises:
        ConfigError: a part needs a pool, and neither task nor options say which.
    """
    needs = {
        "--sampler vas": options.sampler == "vas", "--curriculum stages": options.curriculum == "stages",
        "--predictor history": options.allocator == "knapsack" and options.predictor == "history",
    }  # fmt: skip
    wanted = [name for name, asked in needs.items() if asked]
    size = getattr(task, "size", 0)
    if size and options.pool:
        raise ConfigError(f"{task.name} is a pool of {size} prompts: leave --pool out")
    if size and wanted:
        return Pool(task.chosen(torch.arange(size)))  # type: ignore[attr-defined]
    if options.pool:
        return Pool(task.prompts(options.pool, stream(options.seed, "pool")))
    if wanted:
        raise ConfigError(f"{wanted[0]} knows prompts that come again: pass --pool N")
    return None


def stages_of(task: Task, pool: Pool | None, o: Any) -> Stages:
    """The curriculum of a run.

    Raises:
        ConfigError: there is nothing to order, or bounds and pool do not fit.
    """
    assert pool is not None
    levels = pool.prompts.levels.unique().tolist()
    if len(levels) == 1:
        raise ConfigError(f"prompts of {task.name} are all of one difficulty: leave --curriculum out")
    bounds = o.stage_bounds or thirds(levels)
    return Stages(
        pool.prompts.levels, bounds, order=o.stage_order, advance=o.stage_advance,
        steps=o.stage_steps or -(-o.steps // len(bounds)), every=o.stage_every, patience=o.stage_patience,
        threshold=o.stage_threshold, replay=o.stage_replay,
    )  # fmt: skip


def hinter_of(task: Task, options: Any, policy: Any) -> Hinter:
    """Who knows hints: the task itself, or a file.

    Raises:
        ConfigError: nobody does, or both do.
    """
    if hasattr(task, "hint_levels"):
        if options.hints or options.hint_tiers:
            raise ConfigError(f"task {task.name} has its own hints: leave --hints and --hint-tiers out")
        return cast(Hinter, task)
    if not hasattr(task, "asked"):
        raise ConfigError(f"task {task.name} has no hints; t2, t2-hard and t2-cliff have")
    if not options.hints:
        raise ConfigError("--scaffold hints needs --hints FILE, made by 'offrl llm hints make'")
    from offrl.llm.prompts.hints import TextHints, load_hints

    config = getattr(getattr(policy, "model", None), "config", None)
    room = getattr(config, "max_position_embeddings", None) or options.max_prompt + task.max_response
    longest = min(options.max_prompt, room - task.max_response)
    return TextHints(task, load_hints(options.hints), options.hint_tiers, longest)  # type: ignore[arg-type]


def check_parts(name: str, method: Any, options: Any) -> None:
    """Whether a method and the parts fit.

    Raises:
        ConfigError: they do not; the message says why.
    """
    chosen = options.chosen_parts
    if method.data == "demonstrations" and chosen:
        raise ConfigError(f"{name} samples nothing: leave {chosen[0]} out")
    if options.scaffold != "none" and method.data == "both":
        raise ConfigError(f"{name} has demonstrations where all responses fail: leave --scaffold hints out")
    if options.allocator == "uniform":
        return
    low, high = options.budget_low, options.budget_high
    if not low <= options.group <= high:
        raise ConfigError(
            f"--group {options.group} must be within --budget-low {low} and --budget-high {high}"
        )
    if method.grouped and low < 2:
        raise ConfigError(f"{name} compares the responses of a group: --budget-low must be 2 or more")
    if method.coupled and 0 < options.micro_batch < high:
        raise ConfigError(
            f"micro_batch is {options.micro_batch}, but {name} needs whole groups of up to --budget-high {high}"
        )


def facts(options: Any) -> dict[str, str]:
    """Lines of --dry-run."""
    found = {}
    if options.allocator == "knapsack":
        rows = options.prompts * options.group
        found["responses per step"] = (
            f"{rows} ({options.budget_low} to {min(options.budget_high, rows)} a prompt, by {options.predictor})"
        )
    if options.sampler == "vas":
        found["scoring"] = (
            f"on top, {options.vas_rollouts} responses to each prompt of the pool every {options.vas_every} steps "
            f"({-(-options.steps // options.vas_every)} x)"
        )
    if options.curriculum == "stages":
        found["curriculum"] = f"{options.stage_order} stages, the next by {options.stage_advance}"
    if options.scaffold == "hints":
        first = round(options.hint_exempt * options.steps)
        found["hints"] = f"on top, from step {first + 1} on, a response a level to each prompt that failed"
    return found
