"""The corridor: how often the key is asked for, whatever its length."""

import torch

from offrl.llm.episodes import demonstrate, respond
from offrl.llm.tasks.corridor import ASKED, LONGEST, SHORTEST, Corridor
from offrl.llm.text import EOS, PAD

TASK = Corridor()


class Walker:
    """Goes on, whatever it is asked."""

    pad, ends = PAD, torch.tensor([EOS])
    head, bias = torch.eye(len(TASK.vocabulary)), torch.zeros(len(TASK.vocabulary))

    def begin(self, tokens, mask, copies):
        return self.advance(None, tokens), None

    def advance(self, state, tokens, seen=None):
        word = torch.full((len(tokens),), TASK.go)
        return 30.0 * torch.nn.functional.one_hot(word, len(TASK.vocabulary)).float()

    def narrow(self, state, rows):
        pass


def lengths(prompts):
    return SHORTEST + prompts.ids // 8 % (LONGEST - SHORTEST + 1)


def test_it_asks_again_three_times_in_corridors_of_every_length():
    """One word for each answer before, and one after each question."""
    prompts = TASK.prompts(200, torch.Generator().manual_seed(0))
    found = respond(Walker(), TASK, prompts, temperature=0.0)
    assert len(lengths(prompts).unique()) == LONGEST - SHORTEST + 1
    assert torch.equal(found.lengths, lengths(prompts) + 2 + 1 + ASKED)
    assert bool(found.cut.all())
    assert found.paid.sum() == 0


def test_who_names_the_key_at_once_has_said_70_to_130_tokens():
    prompts = TASK.prompts(200, torch.Generator().manual_seed(0))
    found = demonstrate(TASK, prompts, torch.Generator(), 0.0)
    assert bool((found.paid == 1).all())
    told = (found.tokens != PAD).sum(dim=1)
    assert torch.equal(told, 6 * (lengths(prompts) + 1) + 4)
    assert (int(told.min()), int(told.max())) == (70, 130)
