"""T6, a key that is shown once and asked for after a long corridor: for contexts that do not hold whole episodes.

A turn is one word: ">" goes on, 1 to 8 name a key. The first answer is "!", the key and three letters, each of the next
10 to 20 is five letters, and then "?" asks: 1 is earned if the next key that is named is the one that was shown
(whatever else is said, "?" asks again, three times at most). 70 to 130 tokens if it is named at once; chance is 1/8.
"""

import torch
from torch import Tensor

from offrl.llm.environment import Answer, Stateful
from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, EOS, PAD, Prompts, Responses, Vocabulary

KEYS, LETTERS, ANSWER, SHORTEST, LONGEST, ASKED = 8, 8, 5, 10, 20, 3


class Corridor:
    """Eight keys, lengths and letters by ``prompts.ids``; one difficulty."""

    name, levels, max_prompt = "t6", 1, 1
    max_response = 6 * (1 + LONGEST) + 2 * (1 + ASKED) + 1  # the word after the last question

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(">12345678!?#=abcdefgh")
        self.go, self.key, self.mark, self.question, self.letter = self.vocabulary.ids(">1!?a")
        self.request, self.header, self.longest = self.vocabulary.ids("#"), self.vocabulary.ids("="), 3
        self.allowed = only(self.vocabulary, [EOS, *self.vocabulary.ids(">12345678")])
        self.window: object = None

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Random corridors, which look the same at first."""
        ids = torch.randint(2**31, (count,), generator=generator)
        ones = torch.ones_like(ids)
        tokens = BOS * ones[:, None]
        return Prompts(tokens, tokens > 0, self.max_response * ones, ids, ones)

    def environment(self) -> "CorridorEpisodes":
        """A new one."""
        return CorridorEpisodes(self)

    def expert(self, environment: "CorridorEpisodes", rows: Tensor) -> Tensor:
        """A summary: the key, and the end."""
        keys = self.key + environment.now["key"][rows]
        return torch.stack([keys, torch.full_like(keys, EOS)], dim=1)

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """What the environment paid."""
        return {"key": responses.paid}

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether the key was named."""
        return responses.paid > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The last word that was chosen."""
        columns = torch.arange(responses.mask.shape[1], device=responses.mask.device)
        last = (columns * responses.mask).amax(dim=1, keepdim=True)
        return responses.tokens.gather(1, last)[:, 0].where(responses.mask.any(dim=1), -1)

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}


class CorridorEpisodes(Stateful):
    """The walks."""

    longest_turn, longest_answer = 1, ANSWER

    def __init__(self, task: Corridor) -> None:
        self.task = task
        self.turn_ends = torch.zeros(len(task.vocabulary), dtype=torch.bool)
        self.turn_ends[EOS] = True

    def reset(self, prompts: Prompts) -> None:
        """At the entrance."""
        seed = prompts.ids
        length = SHORTEST + seed // KEYS % (LONGEST - SHORTEST + 1)
        none = torch.zeros_like(seed)
        self.now = {"seed": seed, "key": seed % KEYS, "length": length, "turn": none, "asked": none.clone()}

    def step(self, rows: Tensor, actions: Tensor) -> Answer:
        """One word each."""
        now, task = self.now, self.task
        said, key, asked = actions[:, 0], now["key"][rows], now["asked"][rows]
        named = (said >= task.key) & (said < task.key + KEYS) & (asked > 0)
        right = named & (said == task.key + key)
        now["turn"][rows] += 1
        asks = now["turn"][rows] > now["length"][rows] + 1
        cut = ~named & (asked > ASKED)
        now["asked"][rows] = asked + asks.long()
        places = torch.arange(ANSWER, device=rows.device)
        # letters by a hash of corridor, turn and place: the same for all episodes of a prompt
        mixed = (now["seed"][rows, None] * 40503 + now["turn"][rows, None] * 9973 + places * 619) % 65537
        words = task.letter + (mixed * mixed // 64) % LETTERS
        first = now["turn"][rows] == 1
        words[first, 0], words[first, 1] = task.mark, task.key + key[first]
        alone = torch.full_like(words, PAD)
        alone[:, 0] = task.question
        observations = torch.where(asks[:, None], alone, words)
        lengths = torch.where(asks, 1, ANSWER)
        return Answer(observations, lengths, right.float(), named | cut, cut)

    def expert(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """On, or the key if it is asked for."""
        key = self.task.key + self.now["key"][rows]
        return torch.where(self.now["asked"][rows] > 0, key, self.task.go)[:, None]
