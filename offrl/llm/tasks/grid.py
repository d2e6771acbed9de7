"""T4, walks on a grid in words: a move a turn, the answer is the cell where it led, 1 is earned once, at the goal.

    t4a   5 x 5, 12 turns; the prompt names goal and start, both random
    t4b   5 x 5, 12 turns; from the centre, all four corners are goals and the prompt names none: for diversity
    t4c   7 x 7, 30 turns; a key and then a door, all places in the prompt: long and sparse

    t4d-actor   5 x 5, 6 turns, from the centre to one corner of four, which half of the prompts name; any corner ends,
          and a wrong one tells where the goal is: "-" across, "|" above or below, "x" opposite

Moves into a wall stay where they are. A key is taken by stepping on it; the answer then begins with "+".
"""

import torch
from torch import Tensor

from offrl.llm.environment import Answer, Stateful
from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, PAD, Prompts, Responses, Vocabulary

MOVES = "NESW"
CELLS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDFGHIJKLMO"
SIZES = {"t4a": 5, "t4b": 5, "t4c": 7, "t4d-actor": 5}
TURNS = {"t4a": 12, "t4b": 12, "t4c": 30, "t4d-actor": 6}
RELATIONS = "-|x"


class Grid:
    """Prompts of one difficulty; see the module."""

    levels = 1

    def __init__(self, name: str) -> None:
        self.name, self.side, self.turns = name, SIZES[name], TURNS[name]
        self.cells = self.side**2
        self.vocabulary = Vocabulary(MOVES + "?+" + CELLS[: self.cells] + RELATIONS * (name == "t4d-actor"))
        self.first_move, self.blank, self.mark, self.first = self.vocabulary.ids("N?+a")
        self.allowed = only(self.vocabulary, self.vocabulary.ids(MOVES))
        self.max_prompt = 4 if name == "t4c" else 3
        self.max_response = 2 * self.turns + (name in ("t4c", "t4d-actor"))
        self.corners = [0, self.side - 1, self.cells - self.side, self.cells - 1]

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Uniform places, none twice in a prompt."""
        places = torch.rand(count, self.cells, generator=generator).argsort(dim=1)[:, : self.max_prompt - 1]
        words = self.first + places
        if self.name == "t4b":
            centre = torch.full((count,), self.first + self.cells // 2)
            words = torch.stack([torch.full_like(centre, self.blank), centre], dim=1)
        if self.name == "t4d-actor":
            return self.hinted(
                torch.randint(4, (count,), generator=generator), torch.rand(count, generator=generator) < 0.5
            )
        tokens = torch.cat([torch.full((count, 1), BOS), words], dim=1)
        ids = torch.zeros(count, dtype=torch.int64)
        for word in words.T:
            ids = len(self.vocabulary) * ids + word
        ones = torch.ones_like(ids)
        return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), self.max_response * ones, ids, ones)

    def hinted(self, goals: Tensor, hints: Tensor) -> Prompts:
        """Prompts of t4d-actor: (N,) numbers of corners that are goals, (N,) bool or (N,) tokens that name them."""
        corner = self.first + torch.tensor(self.corners, device=goals.device)[goals]
        hints = torch.where(hints, corner, self.blank) if hints.dtype == torch.bool else hints
        tokens = torch.stack(
            [torch.full_like(goals, BOS), hints, torch.full_like(goals, self.first + 12)], dim=1
        )
        ones = torch.ones_like(goals)
        return Prompts(
            tokens, tokens > 0, self.max_response * ones, len(self.vocabulary) * goals + hints, ones
        )

    def environment(self) -> "GridEpisodes":
        """A new one."""
        return GridEpisodes(self)

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """What the environment paid."""
        return {"goal": responses.paid}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the goal was reached."""
        return responses.paid > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The goal that was reached."""
        last = (responses.tokens != PAD).sum(dim=1, keepdim=True) - 1
        cell = responses.tokens.gather(1, last.clamp(min=0))[:, 0] - self.first  # a wrong corner is none
        return cell.where(responses.paid > 0, -1)

    def measures(self, policy: object) -> dict[str, float]:
        """Of t4b how many of the four goals 16 episodes reach on average, and the share of the least and most often."""
        if self.name != "t4b":
            return {}
        from offrl.llm.episodes import respond

        generator = torch.Generator(policy.bias.device).manual_seed(0)  # type: ignore[attr-defined]
        prompts = self.prompts(1, torch.Generator()).to(policy.bias.device)  # type: ignore[attr-defined]
        found = respond(policy, self, prompts, copies=EPISODES, generator=generator)
        reached = self.final_answers(prompts, found)
        share = [float((reached == corner).float().mean()) for corner in self.corners]
        goals = sum(1.0 - (1.0 - p) ** 16 for p in share)
        return {"goals_of_16": goals, "rarest_goal": min(share), "commonest_goal": max(share)}


EPISODES = 512
"""From which the shares of goals are measured."""


class GridEpisodes(Stateful):
    """The walks."""

    longest_turn = 1

    def __init__(self, task: Grid) -> None:
        self.task, self.size = task, task.side
        self.longest_answer = 2 if task.name in ("t4c", "t4d-actor") else 1
        self.turn_ends = torch.zeros(len(task.vocabulary), dtype=torch.bool)

    def reset(self, prompts: Prompts) -> None:
        """At the start that the prompt names."""
        task, places = self.task, prompts.tokens[:, 1:] - self.task.first
        goals = torch.zeros(len(prompts), task.cells, dtype=torch.bool, device=places.device)
        keys = torch.zeros_like(goals)
        if task.name == "t4b":
            goals[:, task.corners] = True
        elif task.name == "t4d-actor":
            corners = torch.tensor(task.corners, device=places.device)
            goals.scatter_(1, corners[prompts.ids // len(task.vocabulary)][:, None], True)
        else:
            goals.scatter_(1, places[:, -2:-1], True)
        if task.name == "t4c":
            keys.scatter_(1, places[:, :1], True)
        none = torch.zeros_like(places[:, 0])
        blind = prompts.tokens[:, 1] == task.blank
        self.now = {"cell": places[:, -1], "goals": goals, "keys": keys, "turn": none, "blind": blind}

    def step(self, rows: Tensor, actions: Tensor) -> Answer:
        """One move each."""
        now, size, task = self.now, self.size, self.task
        move = actions[:, 0] - task.first_move
        row, column = now["cell"][rows] // size, now["cell"][rows] % size
        row = (row + (move == 2).long() - (move == 0).long()).clamp(0, size - 1)
        column = (column + (move == 1).long() - (move == 3).long()).clamp(0, size - 1)
        cell = size * row + column
        found = now["keys"][rows, cell]
        now["cell"][rows] = cell
        now["keys"][rows[found]] = False
        now["turn"][rows] += 1
        reached = now["goals"][rows, cell] & ~now["keys"][rows].any(dim=1)
        late = now["turn"][rows] >= task.turns
        observations = torch.stack([task.first + cell, torch.full_like(cell, PAD)], dim=1)
        marked = torch.stack([torch.full_like(cell, task.mark), task.first + cell], dim=1)
        observations = torch.where(found[:, None], marked, observations)[:, : self.longest_answer]
        lengths, ended = 1 + found.long(), reached | late
        if task.name == "t4d-actor":
            wrong = torch.isin(cell, torch.tensor(task.corners, device=cell.device)) & ~reached
            goal = now["goals"][rows].long().argmax(dim=1)
            relation = 2 - 2 * (goal // size == cell // size).long() - (goal % size == cell % size).long()
            observations[wrong, 1] = (task.first + task.cells + relation)[wrong]
            lengths, ended = lengths + wrong.long(), ended | wrong
            late = late & ~wrong
        return Answer(observations, lengths, reached.float(), ended, late & ~reached)

    def expert(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A move on a shortest path to the key, else to a goal, drawn where several are as short."""
        now, size = self.now, self.size
        keys, goals = now["keys"][rows].cpu(), now["goals"][rows].cpu()
        if self.task.name == "t4d-actor":
            goals[now["blind"][rows].cpu()] = torch.isin(
                torch.arange(self.task.cells), torch.tensor(self.task.corners)
            )
        targets = torch.where(keys.any(dim=1, keepdim=True), keys, goals).float()
        cell = now["cell"][rows].cpu()
        where = torch.arange(size**2)
        apart = (where // size - cell[:, None] // size).abs() + (where % size - cell[:, None] % size).abs()
        near = targets / (1.0 + 1e3 * (apart - apart.where(targets > 0, 99).amin(1, keepdim=True)))
        goal = torch.multinomial(near, 1, generator=generator)[:, 0]
        down, right = goal // size - cell // size, goal % size - cell % size
        moves = torch.stack([down < 0, right > 0, down > 0, right < 0], dim=1).float()
        moves = moves + (moves.sum(dim=1, keepdim=True) == 0)
        drawn = torch.multinomial(moves, 1, generator=generator).to(rows.device)
        return self.task.first_move + drawn
