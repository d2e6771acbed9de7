"""Episodes longer than a model's window: what it still sees of them, and the summaries that it writes itself.

    truncate    a full context goes on with the prompt and the last half of what it held
    supo        a full context drops its last round and is asked for a summary, with which the next one begins

A context is full from 95 % of the window on, earlier where a summary would not fit any more. The environment keeps what
a dropped round did. An episode that needs more summaries than allowed ends there: it is not learnt from, but counts in
its group. Each token of a transcript belongs to one context (``segments``), under which it is scored; all contexts
of an episode stay one row, so that statistics over rows are over episodes, and every loss is what it was.

Source: arXiv:2510.06727, with the notes of a replication (RainyFields/supo_codegym).
Departures: limits on calls are the environment's limits on turns, and episodes that these cut are learnt from like
others; only those that ran out of summaries are masked.
"""

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.llm.environment import Environment
from offrl.llm.score import Scores, score
from offrl.llm.text import Prompts, Responses
from offrl.llm.transcripts import Reader, Transcripts, read

FULL = 0.95


class Summary(Protocol):
    """How a task asks for summaries."""

    request: list[int]
    """Tokens that ask for one."""
    header: list[int]
    """Tokens before it in the next context."""
    longest: int
    """Tokens that it may have."""

    def expert(self, environment: Any, rows: Tensor) -> Tensor:
        """(M, longest) tokens of a good one, padded on the right."""


class Window:
    """A bound on what the model sees.

    Args:
        kind: what happens to full contexts.
        size: tokens.
        summaries: that an episode may have.
        summary: how a task asks for them.
        prompt: tokens of the longest prompt.
        turn: tokens of the longest turn and its answer.

    Raises:
        ConfigError: the window is too small for anything.
    """

    asked: Tensor
    """(N,) bool: rows that write a summary now."""

    def __init__(
        self,
        kind: Literal["truncate", "supo"],
        size: int,
        summaries: int,
        summary: Summary,
        prompt: int,
        turn: int,
    ) -> None:
        self.kind, self.size, self.summaries, self.summary = kind, size, summaries, summary
        own = len(summary.request) + summary.longest if kind == "supo" else 0
        self.full = min(int(FULL * size), size - own)
        held = prompt + len(summary.header) + summary.longest + (turn if kind == "supo" else 1)
        if (
            self.full <= held
        ):  # truncated contexts may drop a part of the last answer, others drop the whole round
            least = next(n for n in count(held + 1 + own) if int(FULL * n) > held)
            raise ConfigError(
                f"a window of {size} tokens holds no turn beside prompt and summary: pass {least} or more"
            )

    def room(self, environment: Environment) -> int:
        """Tokens that a transcript may have beyond its limit."""
        each = len(self.summary.request) + self.summary.longest
        return environment.longest_answer + (self.summaries * each if self.kind == "supo" else 0)


@dataclass
class Progress:
    """Where N episodes are."""

    alive: Tensor
    cut: Tensor
    overlong: Tensor
    begun: Tensor
    """(N,) where the current context's part of the transcript begins."""
    segments: Tensor
    """(N, L)."""
    contexts: list[list[list[int]]]
    """Of each row what each of its contexts begins with."""

    def base(self, rows: Tensor) -> Tensor:
        """(M,) tokens that the current contexts begin with."""
        found = [len(self.contexts[row][-1]) for row in rows.tolist()]
        return torch.tensor(found, dtype=torch.int64, device=rows.device)

    def visible(self, t: Transcripts, row: int) -> list[int]:
        """The current context."""
        own = t.tokens[row][self.segments[row] == len(self.contexts[row]) - 1]
        return [*self.contexts[row][-1], *own.tolist()]


def managed(
    reader: Reader, t: Transcripts, environment: Environment, prompts: Prompts, window: Window
) -> Responses:
    """Episodes whose contexts the window bounds, from where the environment stands to their ends; one a prompt.

    Args:
        reader: what chooses.
        t: empty.
        environment: that they are in.
        prompts: what each was told.
        window: the bound.
    """
    none = torch.zeros_like(t.length, dtype=torch.bool)
    told = [row[kept].tolist() for row, kept in zip(prompts.tokens, prompts.mask, strict=True)]
    begun, segments = torch.zeros_like(t.length), torch.full_like(t.tokens, -1)
    p = Progress(
        ~none, none.clone(), none.clone(), begun, segments, [[x] for x in told]
    )  # fmt: skip
    window.asked = none.clone()
    ends = environment.turn_ends.to(t.length.device)
    while p.alive.any():
        rows = p.alive.nonzero()[:, 0]
        t.longest[rows] = torch.where(window.asked[rows], window.summary.longest, environment.longest_turn)
        contexts = left_padded([p.visible(t, row) for row in rows.tolist()], t.pad, rows.device)
        full: list[Tensor] = []

        def turn(over: Tensor) -> Tensor:
            return _turn(t, p, environment, window, over, full)  # noqa: B023 it is called in this pass only

        read(reader, t, rows, contexts, ends, turn)
        for row in rows[window.asked[rows] & p.alive[rows]].tolist():
            _begin_again(t, p, window, row)
        for row in torch.cat([*full, rows[:0]]).tolist():
            _filled(t, p, window, row)
    return _responses(t, p)


def _turn(
    t: Transcripts, p: Progress, environment: Environment, window: Window, rows: Tensor, full: list[Tensor]
) -> Tensor:
    """Turns that are over: summaries leave, others are answered, and leave with full contexts. Which leave."""
    leaves = torch.ones_like(rows, dtype=torch.bool)
    acting = ~window.asked[rows]
    summed = rows[~acting]
    _belongs(t, p, summed)
    t.said[summed], t.turn[summed] = 0, t.turn[summed] + 1
    if not acting.any():
        return leaves
    own = rows[acting]
    before = t.length[own] - t.said[own]
    ended, cut = t.answered(environment, own)
    p.alive[own], p.cut[own] = ~ended, cut
    _belongs(t, p, own)
    held = p.base(own) + (p.segments[own] == _last(p, own)[:, None]).sum(dim=1)
    over = ~ended & (held >= window.full)
    if window.kind == "supo":
        for row, first in zip(own[over].tolist(), before[over].tolist(), strict=True):
            _drop(t, p, row, first)
    full.append(own[over])
    leaves[acting] = ended | over
    return leaves


def _last(p: Progress, rows: Tensor) -> Tensor:
    found = [len(p.contexts[row]) - 1 for row in rows.tolist()]
    return torch.tensor(found, dtype=torch.int64, device=rows.device)


def _belongs(t: Transcripts, p: Progress, rows: Tensor) -> None:
    """What some rows have said since ``begun`` stands in their current contexts."""
    columns = torch.arange(t.tokens.shape[1], device=rows.device)
    new = (columns >= p.begun[rows, None]) & (columns < t.length[rows, None])
    p.segments[rows] = torch.where(new, _last(p, rows)[:, None], p.segments[rows])
    p.begun[rows] = t.length[rows]


def _drop(t: Transcripts, p: Progress, row: int, first: int) -> None:
    """The round from ``first`` on was never seen nor said; what it earned goes to the last token before it."""
    gone = slice(first, int(t.length[row]))
    earlier = t.mask[row, :first].nonzero()[:, 0]
    if len(earlier):
        t.rewards[row, earlier[-1]] += t.rewards[row, gone].sum()
        t.rewards[row, gone] = 0.0
    p.segments[row, gone], t.mask[row, gone], t.step_ids[row, gone] = -1, False, -1
    t.log_probs[row, gone] = 0.0


def _filled(t: Transcripts, p: Progress, window: Window, row: int) -> None:
    """A full context: ask for a summary, end without one, or go on with the last half."""
    if window.kind == "truncate":
        prompt = p.contexts[row][0]
        kept = (window.full - len(prompt)) // 2
        p.contexts[row].append([*prompt, *p.visible(t, row)[len(prompt) :][-kept:]])
    elif len(p.contexts[row]) > window.summaries:
        p.alive[row], p.cut[row], p.overlong[row] = False, True, True
    else:
        request, device = window.summary.request, t.tokens.device
        one = torch.tensor([row], device=device)
        t.tell(one, torch.tensor([request], device=device), torch.tensor([len(request)], device=device))
        _belongs(t, p, one)
        t.limits[row] += len(request) + window.summary.longest
        window.asked[row] = True


def _begin_again(t: Transcripts, p: Progress, window: Window, row: int) -> None:
    """After a summary."""
    turn = t.step_ids[row].max()
    summary = t.tokens[row][t.step_ids[row] == turn].tolist()
    p.contexts[row].append([*p.contexts[row][0], *window.summary.header, *summary])
    window.asked[row] = False


def _responses(t: Transcripts, p: Progress) -> Responses:
    found = t.responses(p.cut)
    most = max(map(len, p.contexts))
    flat = [words for row in p.contexts for words in [*row, *([[]] * (most - len(row)))]]
    tokens, mask = left_padded(flat, t.pad, t.tokens.device)
    fields: dict[str, Any] = {
        name: getattr(found, name) for name in ("tokens", "mask", "log_probs", "step_ids")
    }
    return Responses(
        **fields, rewards=found.rewards, cut=p.cut, overlong=p.overlong,
        segments=p.segments[:, : found.tokens.shape[1]],
        contexts=tokens.view(len(p.contexts), most, -1), context_mask=mask.view(len(p.contexts), most, -1),
    )  # fmt: skip


def left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, C) tokens and their mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    sizes = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(width, device=device) >= width - sizes[:, None]


def score_segments(
    policy: Any,
    contexts: tuple[Tensor, Tensor],
    segments: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Scores:
    """``score`` of transcripts each of whose tokens stands in a context of its own row.

    Args:
        policy: in any mode.
        contexts: tokens and mask, (B, S, C).
        segments: (B, T), -1: in none.
        tokens: (B, T).
        mask: (B, T).
        temperature: that of sampling.
        entropy: also entropies.
    """
    inside = segments[:, None] == torch.arange(contexts[0].shape[1], device=tokens.device)[:, None]
    needed = (inside & mask[:, None]).any(dim=2)
    needed[0, 0] |= not needed.any()  # a batch without a token still has a shape
    row, number = needed.nonzero(as_tuple=True)
    own = inside[row, number]
    order = (~own).long().argsort(dim=1, stable=True)[:, : max(int(own.sum(dim=1).max()), 1)]
    there = own.gather(1, order)
    found = score(
        policy, contexts[0][row, number], contexts[1][row, number], tokens[row].gather(1, order),
        mask[row].gather(1, order) & there, temperature=temperature, entropy=entropy,
    )  # fmt: skip
    place = row[:, None].expand_as(order)[there], order[there]

    def back(x: Tensor) -> Tensor:
        return x.new_zeros(*tokens.shape, *x.shape[2:]).index_put(place, x[there])

    return Scores(
        back(found.log_probs), None if found.entropy is None else back(found.entropy), back(found.hidden)
    )
