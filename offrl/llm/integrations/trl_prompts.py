"""What chooses prompts, inside TRL: variance-aware sampling, Knapsack budgets and hints around any method that TRL
can run.

    from offrl.llm.integrations.trl_prompts import PromptRules, trainer
    Trainer = trainer("dr_grpo", PromptRules(solved=check, budget=(2, 64), share=0.5, hints=hints_of))
    Trainer(model, reward_funcs=..., args=GRPOConfig(...), train_dataset=...).train()

Responses come through TRL's ``rollout_func``, one a row, so that a row may have a prompt of its own; group statistics
are taken over the rows that a prompt really got. Differences to ``offrl llm train``: prompts are scored for sampling
by their own training responses, not by extra ones; rates and weights start anew when TRL resumes from its checkpoint;
one process. TRL's own logs of group statistics (``frac_reward_zero_std``) still assume equal groups: do not read them
with a budget.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.llm.integrations import trl
from offrl.llm.prompts.hints import key_of
from offrl.llm.prompts.history import History
from offrl.llm.prompts.knapsack import allocate, even
from offrl.llm.prompts.vas import VAS


@dataclass(frozen=True, kw_only=True)
class PromptRules:
    """What is done; None: not.

    Args:
        solved: (prompt of the data set, completion) -> whether it is right, also where a hint was shown.
        share: of a batch that is drawn by the variance of outcomes.
        budget: least and most responses to a prompt; ``num_generations`` on average.
        hints: prompt -> the same with hints, from abstract to concrete; asked where all responses fail.
        exempt: share of the training steps without hints.
        decay: what past responses to a prompt still weigh at its next visit.
    """

    solved: Callable[[Any, str], bool]
    share: float | None = None
    budget: tuple[int, int] | None = None
    hints: Callable[[Any], Sequence[Any]] | None = None
    exempt: float = 0.15
    decay: float = 0.7


class Draws:
    """Rows of a data set as TRL's sampler gives them: each ``group`` times, each batch ``repeats`` times.

    Args:
        vas: draws.
        prompts: of a batch.
        group: responses to each.
        repeats: of a batch.
    """

    def __init__(self, vas: VAS, prompts: int, group: int, repeats: int) -> None:
        self.vas, self.prompts, self.group, self.repeats = vas, prompts, group, repeats
        self.batches = len(vas.weights) // prompts

    def __len__(self) -> int:
        return self.batches * self.prompts * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        everything = torch.ones(len(self.vas.weights), dtype=torch.bool)
        for _ in range(self.batches):
            rows = self.vas.draw(self.prompts, everything).tolist()
            for _ in range(self.repeats):
                yield from (row for row in rows for _ in range(self.group))


def budgets(rates: Tensor, group: int, low: int, high: int) -> list[int]:
    """Responses to each prompt, ``group`` on average; prompts without a rate (NaN) get just that."""
    known = ~rates.isnan()
    counts = torch.full((len(rates),), group)
    found = allocate(rates[known].numpy(), group * int(known.sum()), low, high)
    counts[known] = torch.from_numpy(found)
    return [int(count) for count in counts]


def rescue(
    prompts: Sequence[Any], right: Sequence[bool], sizes: Sequence[int], hints: Callable[[Any], Sequence[Any]]
) -> tuple[list[Any], list[int]]:
    """Hinted prompts of the groups without a success, level by level, and the row that each could replace."""
    asked: list[Any] = []
    rows: list[int] = []
    first = 0
    for size in sizes:
        if not any(right[first : first + size]):
            tries = list(hints(prompts[first]))
            asked += tries
            rows += [first] * len(tries)
        first += size
    return asked, rows


def trainer(name: str, rules: PromptRules, settings: Any = None) -> Any:
    """A subclass of TRL's GRPOTrainer for a method, with these rules; see ``trl.trainer``.

    Raises:
        ConfigError: a method that TRL's loop cannot run, another version of TRL, or impossible rules.
        MissingExtraError: without TRL.
    """
    if rules.share is None and rules.budget is None and rules.hints is None:
        raise ConfigError("no rule is given: use offrl.llm.integrations.trl.trainer")
    return subclass(trl.trainer(name, settings), rules)


def subclass(base: Any, rules: PromptRules) -> Any:
    """``base``, a class of ``trl.trainer``, with the rules."""
    return type("Trainer", (Prompted, base), {"rules": rules})


_Base: Any = object


class Prompted(_Base):  # type: ignore[misc]
    """What ``subclass`` puts before TRL's trainer."""

    rules: PromptRules

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, rollout_func=lambda prompts, own: own.rolled(prompts), **kwargs)
        if self.accelerator.num_processes > 1:
            raise ConfigError("prompt rules run in one process")
        if self.rules.budget and not self.rules.budget[0] <= self.num_generations <= self.rules.budget[1]:
            raise ConfigError(
                f"num_generations {self.num_generations} must be within the budget {self.rules.budget}"
            )
        prompts = [key_of(row["prompt"]) for row in self.train_dataset]
        self.row_of = {prompt: i for i, prompt in enumerate(prompts)}
        self.history = History(len(prompts), self.rules.decay)
        stream = torch.Generator().manual_seed(self.args.seed)
        self.vas = None if self.rules.share is None else VAS(len(prompts), self.rules.share, 0.0, stream)
        self.sizes: list[int] | None = None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        if self.vas is None:
            return super()._get_train_sampler(dataset)
        group = self.num_generations
        repeats = self.num_iterations * self.args.steps_per_generation
        return Draws(self.vas, self.args.generation_batch_size // group, group, repeats)

    def _rates(self, prompts: Sequence[Any]) -> Tensor:
        return self.history.predict(None, torch.tensor([self.row_of[key_of(p)] for p in prompts]))  # type: ignore[arg-type]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        training, group = self.model.training, self.num_generations
        self.sizes = None
        if training:
            chosen = inputs[::group]
            self.sizes = [group] * len(chosen)
            if self.rules.budget:
                self.sizes = budgets(
                    self._rates([row["prompt"] for row in chosen]), group, *self.rules.budget
                )
            inputs = [dict(row) for row, n in zip(chosen, self.sizes, strict=True) for _ in range(n)]
        output = super()._generate_and_score_completions(inputs)
        if training and self.rules.budget:
            found = output["advantages"]
            weights = even(self._group_ids(len(inputs))).to(found)
            output["advantages"] = found * weights.view(-1, *[1] * (found.dim() - 1))
        return output

    def _group_ids(self, count: int) -> Tensor:
        if self.sizes is None:
            equal: Tensor = super()._group_ids(count)
            return equal
        sizes = torch.tensor(self.sizes, device=self.accelerator.device)
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    def rolled(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """TRL's rollout function: responses, some of them under hinted prompts."""
        ids, completions, log_probs, right = self._answered(prompts)
        if self.sizes is None:
            return {"prompt_ids": ids, "completion_ids": completions, "logprobs": log_probs}
        self._observe(prompts, right)
        if self.rules.hints and self.state.global_step >= self.rules.exempt * self.state.max_steps:
            asked, rows = rescue(prompts, right, self.sizes, self.rules.hints)
            found = self._answered(asked, [prompts[row] for row in rows]) if asked else ([], [], [], [])
            for i in reversed([i for i, solved in enumerate(found[3]) if solved]):  # the first level wins
                ids[rows[i]], completions[rows[i]] = found[0][i], found[1][i]
                if log_probs is not None:
                    log_probs[rows[i]] = found[2][i]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": log_probs}

    def _answered(
        self, prompts: Sequence[Any], own: Sequence[Any] | None = None
    ) -> tuple[Any, Any, Any, list[bool]]:
        """Responses, and whether they solve the prompts, or those of the data set that ``prompts`` are hinted."""
        ids, _, _ = self._tokenize_prompts(list(prompts))
        completions, log_probs = self._generate_single_turn(ids, None, {}, 1)
        texts = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        right = [bool(self.rules.solved(p, text)) for p, text in zip(own or prompts, texts, strict=True)]
        return ids, completions, log_probs, right

    def _observe(self, prompts: Sequence[Any], right: list[bool]) -> None:
        sizes = torch.tensor(self.sizes)
        ids = torch.arange(len(sizes)).repeat_interleave(sizes)
        solved = torch.zeros(len(sizes)).index_add(0, ids, torch.tensor(right).float())
        first = sizes.cumsum(0) - sizes
        rows = torch.tensor([self.row_of[key_of(prompts[i])] for i in first.tolist()])
        self.history.observe(None, rows, solved, sizes)  # type: ignore[arg-type]
        if self.vas is not None:
            rates = self.history.predict(None, torch.arange(len(self.history.counts)))  # type: ignore[arg-type]
            score = (rates * (1.0 - rates)).nan_to_num(0.25)
            self.vas.weights = (score - score.min()) / (score.max() - score.min() + 1e-8)
