"""Prompts of a data set as a task: text in, text out, rewarded by verifiers and functions.

Each row is a prompt (text, or messages with role and content) with its answer. A response is right where the first
reward is above 1/2. Optional columns: ``response``, a demonstration (else the answer is one); ``level``, a difficulty
from 1.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, DatasetError
from offrl.llm.data import Row, field
from offrl.llm.pretrained import Subwords
from offrl.llm.rewards import Asked, Reward
from offrl.llm.text import Prompts, Responses
from offrl.llm.verifiers import last_number

HARDEST = 1000
"""Highest difficulty: evaluations have a column for each."""


class PromptTask:
    """Rows as prompts.

    Args:
        name: of the task.
        rows: of the data set.
        vocabulary: of the model.
        rewards: at least one.
        prompt_key: column of the prompts.
        answer_key: column of the answers.
        max_prompt: longer prompts are left out, in tokens.
        max_response: tokens at most.
        template: "auto", "none" or a chat template.
    """

    def __init__(
        self,
        name: str,
        rows: list[Row],
        vocabulary: Subwords,
        rewards: Sequence[Reward],
        *,
        prompt_key: str = "prompt",
        answer_key: str = "answer",
        max_prompt: int = 512,
        max_response: int = 128,
        template: str = "auto",
    ) -> None:
        if not rewards:
            raise ConfigError(
                f"what is a right response to {name}? pass --reward, for instance --reward integer"
            )
        self.name, self.vocabulary, self.components = name, vocabulary, list(rewards)
        self.max_response, self.template = max_response, template
        self.held_out: PromptTask | None = None
        asked = [field(row, prompt_key, name) for row in rows]
        tokens = [tokens_of(prompt, i, name, vocabulary, template) for i, prompt in enumerate(asked, 1)]
        kept = [i for i, ids in enumerate(tokens) if 0 < len(ids) <= max_prompt]
        if not kept:
            raise DatasetError(
                f"all prompts of {name} are empty or longer than max_prompt, {max_prompt} tokens"
            )
        self.left_out = len(rows) - len(kept)
        self.rows, self.asked = [rows[i] for i in kept], [asked[i] for i in kept]
        self.tokens = [tokens[i] for i in kept]
        self.columns: Row = {
            key: None for row in rows for key in row
        }  # what some rows lack is None to rewards
        self.max_prompt = max(map(len, self.tokens))
        self.answers = [field(row, answer_key, name) for row in self.rows]
        for i, answer in zip(kept, self.answers, strict=True):
            check_answer(answer, i + 1, name, self.components)
        self.difficulty = torch.tensor([level_of(row, name) for row in self.rows])
        self.levels = int(self.difficulty.max())
        self.allowed = torch.ones(len(vocabulary), dtype=torch.bool)
        self.highest = max(vocabulary.filler, *(max(ids) for ids in self.tokens))
        self._last: tuple[Responses, dict[str, list[float]]] | None = None

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.rows)

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Random rows, none twice before all were drawn."""
        rounds = -(-count // self.size)
        order = [torch.randperm(self.size, generator=generator) for _ in range(rounds)]
        return self.chosen(torch.cat(order)[:count])

    def chosen(self, ids: Tensor) -> Prompts:
        """Given rows."""
        rows = [self.tokens[i] for i in ids.tolist()]
        width = max(map(len, rows), default=1)
        filler = self.vocabulary.filler
        tokens = torch.tensor([[filler] * (width - len(row)) + row for row in rows]).view(len(rows), width)
        mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
        return Prompts(tokens, mask, torch.full_like(ids, self.max_response), ids, self.difficulty[ids])

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """Components times their weights."""
        return {
            reward.name: reward.weight * self._tensor(values, prompts)
            for reward, values in zip(self.components, self._values(prompts, responses).values(), strict=True)
        }

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the first component is above 1/2."""
        first = next(iter(self._values(prompts, responses).values()))
        return self._tensor(first, prompts) > 0.5

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Equal for responses whose last numbers are equal, or where there is none, their last lines."""
        rows = zip(responses.tokens, responses.mask, strict=True)
        texts = [self.vocabulary.text(row[kept]) for row, kept in rows]
        return torch.tensor([answer_id(text) for text in texts], device=prompts.ids.device)

    def _tensor(self, values: list[float], prompts: Prompts) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=prompts.ids.device)

    def _values(self, prompts: Prompts, responses: Responses) -> dict[str, list[float]]:
        """All components, kept for the next question about the same responses."""
        if self._last is None or self._last[0] is not responses:
            if len(prompts) == 0:
                return {reward.name: [] for reward in self.components}
            ids = prompts.ids.tolist()
            tokens = [row[kept] for row, kept in zip(responses.tokens, responses.mask, strict=True)]
            asked = Asked(
                [self.columns | self.rows[i] for i in ids], [self.asked[i] for i in ids],
                [self.answers[i] for i in ids],
                [self.vocabulary.text(row) for row in tokens], [row.tolist() for row in tokens],
            )  # fmt: skip
            self._last = responses, {reward.name: reward(asked) for reward in self.components}
        return self._last[1]

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """Column ``response`` or the answer, cut to the longest response allowed."""
        if noise:
            raise ConfigError(f"demonstrations of {self.name} are text: noise must be 0")
        own = [(self.rows[i].get("response"), self.answers[i]) for i in prompts.ids.tolist()]
        texts = [str(answer if response is None else response) for response, answer in own]
        ids = [self.vocabulary.response(text)[: self.max_response] for text in texts]
        width = max(map(len, ids))
        return torch.tensor([row + [self.vocabulary.pad] * (width - len(row)) for row in ids])

    def measures(self, policy: Any) -> dict[str, float]:
        """Nothing."""
        return {}


def omissions(task: Any, max_prompt: int) -> list[str]:
    """A line for each data set, that of evaluations too, of which prompts were left out."""
    sets: list[Any] = [task, getattr(task, "held_out", None)]
    return [
        f"{number} prompts of {each.name} are empty or longer than {max_prompt} tokens: left out"
        for each in sets
        if (number := getattr(each, "left_out", 0))
    ]


def tokens_of(prompt: Any, number: int, name: str, vocabulary: Subwords, template: str) -> list[int]:
    """A prompt as ids.

    Args:
        prompt: text or messages.
        number: of its row, from 1.
        name: of the data set.
        vocabulary: of the model.
        template: as in ``Subwords.prompt``.

    Raises:
        DatasetError: neither text nor messages.
        ConfigError: the template does not take it.
    """
    known = isinstance(prompt, list) and all(
        isinstance(m, dict) and {"role", "content"} <= {*m} for m in prompt
    )
    if not (isinstance(prompt, str) or (known and prompt)):
        raise DatasetError(
            f"prompt {number} of {name} is neither text nor messages with role and content: {str(prompt)[:60]!r}"
        )
    try:
        return vocabulary.prompt(prompt, template)
    except ConfigError:
        raise
    except Exception as error:  # whatever a template raises
        raise ConfigError(
            f"the chat template does not take prompt {number} of {name}: {type(error).__name__}: {error}"
        ) from None


def check_answer(answer: Any, number: int, name: str, rewards: Sequence[Reward]) -> None:
    """Before a run meets it: whether the rewards can use the answer of row ``number``, from 1.

    Raises:
        DatasetError: one cannot.
    """
    try:
        for reward in rewards:
            reward.check(answer)
    except ConfigError as error:
        raise DatasetError(
            f"answer {number} of {name} does not fit --reward {reward.name}: {error}"
        ) from None


def level_of(row: Row, name: str) -> int:
    """The difficulty of a row, 1 without one.

    Raises:
        DatasetError: something else than a whole number from 1 to ``HARDEST``.
    """
    value = row.get("level", 1)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 1.0 <= number <= HARDEST or not number.is_integer():
        raise DatasetError(
            f"levels of {name} must be whole numbers from 1 to {HARDEST}, got {repr(value)[:60]}"
        )
    return int(number)


def answer_id(text: str) -> int:
    """Of the final answer in a text, the same in every process; -1 of an empty text."""
    if (number := last_number(text)) is not None:
        answer = repr(number)
    elif not (answer := text.strip().splitlines()[-1].strip() if text.strip() else ""):
        return -1
    return int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=7).digest())
