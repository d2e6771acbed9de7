"""Hints for prompts of a data set: files of them, made by a teacher, and how they enter a prompt.

One JSON object a line: ``prompt`` and, for each tier, a list of parts. Level j of a tier shows parts 1 .. j; tiers
follow each other from abstract to concrete:

    knowledge    knowledge_components_parts      what one must know
    planning     planning_skeleton_parts         the steps, without their results
    solution     solution_breakdown_parts        the steps with their results, all but the final answer

Source: arXiv:2510.19807; names of the columns: dvlab-research/Scaf-GRPO.
"""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, DatasetError
from offrl.files import atomic_write_text
from offrl.llm.data import Row, field
from offrl.llm.tasks.prompts import PromptTask
from offrl.llm.text import Prompts
from offrl.llm.verifiers import last_number, numbers

TIERS = {
    "knowledge": "knowledge_components_parts",
    "planning": "planning_skeleton_parts",
    "solution": "solution_breakdown_parts",
}
ASKED = {
    "knowledge": "the facts, definitions and formulas that are needed, without applying them",
    "planning": "the steps of a plan, in order, without any of their results",
    "solution": "the worked steps with their intermediate results, stopping before the final answer",
}
LARGEST = 1 << 20
"""Bytes of a teacher's reply that are read at most."""


def key_of(prompt: Any) -> str:
    """What names a prompt: its text, or its messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def load_hints(path: str) -> dict[str, Row]:
    """Rows of a file of hints by prompt.

    Raises:
        DatasetError: no such file, or one that holds something else.
    """
    found: dict[str, Row] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[key_of(row["prompt"])] = row
            parts = [row.get(column, []) for column in TIERS.values()]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise DatasetError(f"{path}, line {number}: an object with a prompt was expected") from None
        if not all(isinstance(p, list) and all(isinstance(x, str) for x in p) for p in parts):
            raise DatasetError(f"{path}, line {number}: the parts of a tier are a list of text")
    return found


class TextHints:
    """Hints of a data set's prompts.

    Args:
        task: the data set.
        hints: rows by prompt.
        tiers: that are used, in order; empty: all.
        longest: longer hinted prompts are dropped, in tokens.
    """

    def __init__(
        self, task: PromptTask, hints: dict[str, Row], tiers: Sequence[str] = (), longest: int = 512
    ) -> None:
        if unknown := set(tiers) - set(TIERS):
            raise ConfigError(f"unknown tier {min(unknown)!r}; there are {', '.join(TIERS)}")
        self.task, self.longest = task, longest
        columns = [TIERS[tier] for tier in tiers or TIERS]
        rows = [hints.get(key_of(asked), {}) for asked in task.asked]
        depth = {column: max((len(row.get(column, [])) for row in rows), default=0) for column in columns}
        self.levels = [(column, j + 1) for column in columns for j in range(depth[column])]
        if not self.levels:
            raise ConfigError("no prompt of the data set has a hint in these tiers")
        self.rows = rows

    @property
    def hint_levels(self) -> int:
        """Of all tiers together."""
        return len(self.levels)

    def hinted(self, prompts: Prompts, level: int) -> tuple[Prompts, Tensor]:
        """Prompts with the parts of a level under them; those without, or too long, do not fit."""
        column, depth = self.levels[level - 1]
        task, rows = self.task, []
        for i in prompts.ids.tolist():
            parts = self.rows[i].get(column, [])
            asked = with_hint(task.asked[i], parts[:depth]) if len(parts) >= depth else None
            ids = [] if asked is None else task.vocabulary.prompt(asked, task.template)
            rows.append(ids if len(ids) <= self.longest else [])
        width = max(max(map(len, rows), default=1), 1)
        tokens = [[task.vocabulary.filler] * (width - len(row)) + row for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(width) >= width - lengths[:, None]
        device = prompts.ids.device
        made = Prompts(
            torch.tensor(tokens).view(len(rows), width), mask, prompts.limits.cpu(), prompts.ids.cpu(),
            prompts.levels.cpu(),
        )  # fmt: skip
        return made.to(device), (lengths > 0).to(device)


def with_hint(prompt: Any, parts: Sequence[str]) -> Any:
    """The prompt, or its last message, with a hint under it."""
    text = "\n\nHint:\n" + "\n".join(parts)
    if isinstance(prompt, str):
        return prompt + text
    *before, last = prompt
    return [*before, {**last, "content": str(last["content"]) + text}]


# making them


@dataclass(frozen=True)
class Teacher:
    """A chat endpoint of OpenAI's form.

    Args:
        url: its base, such as http://host:8000/v1.
        model: name of the model.
        key: sent as a bearer token, if there is one.
        timeout: seconds to wait for a reply.
        tokens: of a reply at most.
    """

    url: str
    model: str
    key: str = ""
    timeout: float = 60.0
    tokens: int = 1024

    def __call__(self, text: str) -> str:
        """The reply.

        Raises:
            ConfigError: no reply, or none of the expected form.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.tokens,
        }
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        address = self.url.rstrip("/") + "/chat/completions"
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"the teacher's address must begin with http:// or https://, got {self.url!r}")
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                data = reply.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ConfigError(f"{address} sent more than {LARGEST} bytes")
            found = json.loads(data)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:  # its body says which model or option is wrong
            said = error.read(1000).decode(errors="replace")
            raise ConfigError(f"{address} gave no answer: {error}: {' '.join(said.split())}") from None
        except (
            OSError, http.client.HTTPException, urllib.error.URLError, ValueError, KeyError, IndexError, TypeError,
        ) as error:  # fmt: skip
            raise ConfigError(f"{address} gave no answer: {type(error).__name__}: {error}") from None
        return str(found)


def question(prompt: Any, answer: Any, tier: str, parts: int) -> str:
    """What the teacher is asked for."""
    return (
        f"A student could not solve the problem below. Write {parts} short hints for the tier '{tier}': {ASKED[tier]}. "
        f"Never state the final answer. Reply with a JSON list of {parts} strings, nothing else.\n\n"
        f"Problem:\n{key_of(prompt)}\n\nFinal answer (for you alone):\n{answer}"
    )


def parts_of(reply: str, parts: int) -> list[str] | None:
    """The last list of that many texts in a reply, whatever stands around it; None: there is none."""
    decoder, fitting = json.JSONDecoder(), None
    for found in re.finditer(r"\[", reply):
        try:
            items, _ = decoder.raw_decode(reply, found.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        if len(items) == parts and all(isinstance(x, str) and x.strip() for x in items):
            fitting = [x.strip() for x in items]
    return fitting


def leaks(parts: Iterable[str], answer: Any) -> bool:
    """Whether the final answer stands in one of the parts, as a number of its own or as a word."""
    text, number = str(answer).strip(), last_number(str(answer))
    if number is not None:
        return any(number in numbers(part) for part in parts)
    pattern = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
    return bool(text) and any(pattern.search(part) for part in parts)


@dataclass
class Made:
    """What came of a run of the teacher."""

    asked: int = 0
    kept: int = 0
    leaked: int = 0
    malformed: int = 0


def make_hints(
    rows: Sequence[Row],
    path: Path,
    teacher: Callable[[str], str],
    *,
    tiers: Sequence[str],
    name: str = "the data set",
    parts: int = 4,
    prompt_key: str = "prompt",
    answer_key: str = "answer",
    attempts: int = 2,
    note: Callable[[str], None] = lambda line: None,
) -> Made:
    """Ask the teacher for what a file of hints still lacks; the file is written after each prompt.

    Parts that show the final answer are asked for again, ``attempts`` times in all, then left empty, and said so. An
    empty tier is not asked for again.

    Args:
        rows: of the data set.
        path: of the file; what it holds is kept.
        teacher: text -> reply.
        tiers: to be made.
        name: of the data set, in messages.
        parts: of a tier.
        prompt_key: column of the prompts.
        answer_key: column of the answers.
        attempts: for each tier of a prompt.
        note: called with a line of progress.
    """
    if unknown := set(tiers) - set(TIERS):
        raise ConfigError(f"unknown tier {min(unknown)!r}; there are {', '.join(TIERS)}")
    known, made = (load_hints(str(path)) if path.exists() else {}), Made()
    for number, row in enumerate(rows, 1):
        prompt, answer = field(row, prompt_key, name), field(row, answer_key, name)
        entry = known.setdefault(key_of(prompt), {"prompt": prompt})
        missing = [tier for tier in tiers if TIERS[tier] not in entry]
        for tier in missing:
            entry[TIERS[tier]] = _asked(
                teacher, question(prompt, answer, tier, parts), answer, parts, attempts, made
            )
        if missing:
            atomic_write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in known.values()))
            note(f"{number}/{len(rows)} prompts")
    return made


def _asked(
    teacher: Callable[[str], str], text: str, answer: Any, parts: int, attempts: int, made: Made
) -> list[str]:
    for _ in range(attempts):
        made.asked += 1
        found = parts_of(teacher(text), parts)
        if found is None:
            made.malformed += 1
        elif leaks(found, answer):
            made.leaked += 1
        else:
            made.kept += 1
            return found
    return []
