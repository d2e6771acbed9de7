"""MiniGrid in words: ``--task minigrid:MiniGrid-Empty-Random-6x6-v0``, or another id, of rooms with key, door and goal.

The prompt names the places of key, door and goal and where the agent stands. A turn is one word (l, r: turn,
f: forward, p: pick up, t: toggle), the answer is direction, place, what is ahead, and whether a key is carried. The
reward is MiniGrid's own.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, MissingExtraError
from offrl.llm.environment import Answer, State
from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, PAD, Prompts, Responses, Vocabulary, left_padded

WORDS = {"l": 0, "r": 1, "f": 2, "p": 3, "t": 5}  # word -> MiniGrid's action
SAID = {"l": "left", "r": "right", "f": "forward", "p": "pick up", "t": "toggle"}
FACING = {"e": "east", "s": "south", "w": "west", "n": "north"}  # in the order of MiniGrid's directions
AHEAD = {".": "nothing", "#": "wall", "G": "goal", "K": "key", "D": "door", "O": "open door"}
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
LETTERS = {"wall": "#", "goal": "G", "key": "K"}
TURNS, TOLD = 30, 5


class Sentences(Vocabulary):
    """Shown in words, a line a turn."""

    def text(self, ids: Tensor) -> str:
        """One row as text."""
        symbols, lines = super().text(ids), [""]
        i = 0
        while i < len(symbols):
            if symbols[i] in SAID:
                lines.append(f"> {SAID[symbols[i]]}")
                i += 1
            elif symbols[i] in FACING:
                facing, x, y, ahead, key = list(symbols[i : i + TOLD].ljust(TOLD))
                carried = ", with a key" if key == "+" else ""
                lines[-1] += f"  at {x},{y} facing {FACING[facing]}, {AHEAD.get(ahead, ahead)} ahead{carried}"
                i += TOLD
            else:
                lines[-1] += f"{AHEAD.get(symbols[i], symbols[i])} at {','.join(symbols[i + 1 : i + 3])}; "
                i += 3
        return "\n".join(line.strip() for line in lines if line)


class MiniGrid:
    """Random rooms of one environment id; ``prompts.ids`` are seeds."""

    levels, turns = 1, TURNS

    def __init__(self, name: str) -> None:
        self.name, self.id = name, name.partition(":")[2]
        self.vocabulary = Sentences("lrfpt" + "eswn" + "".join(AHEAD) + "+-" + "0123456789")
        self.allowed = only(self.vocabulary, self.vocabulary.ids("lrfpt"))
        self.max_prompt, self.max_response = 1 + 3 * 3 + TOLD, (1 + TOLD) * TURNS
        room = self.made(0)
        if max(room.width, room.height) > 10:
            raise ConfigError(f"rooms of {self.id} are wider than the ten cells that one digit names")
        if not any(seen(room, (x, y)) == "G" for x in range(room.width) for y in range(room.height)):
            raise ConfigError(f"rooms of {self.id} have no goal to walk to, and its mission is not told")

    def made(self, seed: int) -> Any:
        """A room."""
        try:
            import gymnasium
            import minigrid  # noqa: F401 it registers its environments
        except ImportError:
            raise MissingExtraError("tasks minigrid:ID", "minigrid") from None
        try:
            room = gymnasium.make(self.id, max_steps=TURNS).unwrapped
        except (gymnasium.error.Error, TypeError) as error:  # TypeError: an environment without max_steps
            raise ConfigError(f"{self.id!r} is no environment of MiniGrid: {error}") from None
        room.reset(seed=seed)
        return room

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Random seeds."""
        ids = torch.randint(2**31, (count,), generator=generator)
        rows = []
        for seed in ids.tolist():
            room, words = self.made(seed), ""
            for x in range(room.width):
                for y in range(room.height):
                    if (letter := seen(room, (x, y))) in "KDOG":
                        words += f"{letter}{x}{y}"
            rows.append([BOS, *self.vocabulary.ids(words + told(room))])
        ones = torch.ones_like(ids)
        if not rows:
            return Prompts(ids[:, None], ids[:, None] > 0, ids, ids, ids)
        tokens, mask = left_padded(rows, max(map(len, rows)))
        return Prompts(tokens, mask, self.max_response * ones, ids, ones)

    def environment(self) -> "Rooms":
        """A new one."""
        return Rooms(self)

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """What MiniGrid paid."""
        return {"goal": responses.paid}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the goal was reached."""
        return responses.paid > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Success: 1 or 0."""
        return (responses.paid > 0).long()

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}


def seen(room: Any, place: tuple[int, int]) -> str:
    """The letter of a cell."""
    thing = room.grid.get(*place)
    if thing is not None and thing.type == "door":
        return "O" if thing.is_open else "D"
    return "." if thing is None else LETTERS.get(thing.type, "#")


def told(room: Any) -> str:
    """What the environment answers."""
    (x, y), facing = map(int, room.agent_pos), int(room.agent_dir)
    ahead = x + STEPS[facing][0], y + STEPS[facing][1]
    return f"{list(FACING)[facing]}{x}{y}{seen(room, ahead)}{'-' if room.carrying is None else '+'}"


class Rooms:
    """Episodes; a state is a seed and what was done since, which is done again where it is restored."""

    longest_turn, longest_answer = 1, TOLD

    def __init__(self, task: MiniGrid) -> None:
        self.task = task
        self.turn_ends = torch.zeros(len(task.vocabulary), dtype=torch.bool)
        self.rooms: list[Any] = []

    def reset(self, prompts: Prompts) -> None:
        """Rooms of the prompts' seeds."""
        done = torch.full((len(prompts), TURNS), PAD, device=prompts.ids.device)
        self.restore({"seed": prompts.ids, "done": done, "turn": torch.zeros_like(prompts.ids)})

    def step(self, rows: Tensor, actions: Tensor) -> Answer:
        """One action each."""
        self.now["done"][rows, self.now["turn"][rows]] = actions[:, 0]
        self.now["turn"][rows] += 1
        found = [
            self._act(row, word) for row, word in zip(rows.tolist(), actions[:, 0].tolist(), strict=True)
        ]
        words = [self.task.vocabulary.ids(told(self.rooms[row])) for row in rows.tolist()]
        rewards, ended, cut = (torch.tensor(x, device=rows.device) for x in zip(*found, strict=True))
        observations = torch.tensor(words, device=rows.device)
        return Answer(observations, torch.full_like(rows, TOLD), rewards, ended | cut, cut & ~ended)

    def _act(self, row: int, word: int) -> tuple[float, bool, bool]:
        action = list(WORDS.values())[word - self.task.vocabulary.ids("l")[0]]
        _, reward, ended, cut, _ = self.rooms[row].step(action)
        return float(reward), bool(ended), bool(cut)

    def expert(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """An action on a shortest path to the key, the door, the goal."""
        words = "".join(best(self.rooms[row]) for row in rows.tolist())
        return torch.tensor(self.task.vocabulary.ids(words), device=rows.device)[:, None]

    def state(self) -> State:
        """Seeds and actions."""
        return {name: x.clone() for name, x in self.now.items()}

    def restore(self, state: State) -> None:
        """Done again."""
        self.now = {name: x.clone() for name, x in state.items()}
        self.rooms = [self.task.made(seed) for seed in self.now["seed"].tolist()]
        for row, done in enumerate(self.now["done"].tolist()):
            for word in (word for word in done if word != PAD):
                self._act(row, word)


def best(room: Any) -> str:
    """The first word of a shortest way to what comes next."""
    places = {seen(room, (x, y)): (x, y) for x in range(room.width) for y in range(room.height)}
    target = "K" if "K" in places and room.carrying is None else "D" if "D" in places else "G"
    start = int(room.agent_pos[0]), int(room.agent_pos[1]), int(room.agent_dir)
    queue, known = deque([(start, "")]), {start}
    while queue:
        (x, y, facing), first = queue.popleft()
        ahead = x + STEPS[facing][0], y + STEPS[facing][1]
        if ahead == places.get(target) and target != "G":
            return first or {"K": "p", "D": "t"}[target]
        if (x, y) == places.get(target):
            return first
        moves = {"l": (x, y, (facing - 1) % 4), "r": (x, y, (facing + 1) % 4)}
        if seen(room, ahead) in ".GO":
            moves["f"] = (*ahead, facing)
        for word, after in moves.items():
            if after not in known:
                known.add(after)
                queue.append((after, first or word))
    return "f"
