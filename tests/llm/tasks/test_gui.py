"""The screen: what each action earns, that parts add up, and that demonstrations are right."""

import pytest
import torch

from offrl.llm.tasks.gui import Screen
from offrl.llm.text import BOS, EOS, Prompts, Responses, left_padded

TASK = Screen()


def asked(text):
    tokens, mask = left_padded([[BOS, *TASK.vocabulary.ids(text)]], TASK.max_prompt)
    one = torch.tensor([1])
    return Prompts(tokens, mask, 4 * one, one, one)


def earned(prompt, action):
    ids = [EOS if symbol == "." else TASK.vocabulary.ids(symbol)[0] for symbol in action]
    tokens = torch.tensor([ids])
    responses = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros(tokens.shape))
    parts = TASK.rewards(asked(prompt), responses)
    return [round(float(value), 6) for value in parts.values()], bool(TASK.success(asked(prompt), responses))


CLICK, SWIPE, TYPE = "b12c40f35|bufc|3=", "b12c40f35|bufc|1=", "b12c40f35|y|0="


@pytest.mark.parametrize(
    ("prompt", "action", "parts"),
    [
        (CLICK, "C40.", (0.1, 0.3, 0.6)),
        (CLICK, "C51.", (0.1, 0.3, 0.6)),
        (CLICK, "C42.", (0.1, 0.3, 0.0)),  # right kind, beside the box
        (CLICK, "C12.", (0.1, 0.3, 0.0)),  # another widget
        (CLICK, "Su.", (0.1, 0.0, 0.0)),  # wrong kind: parameters are not looked at
        (CLICK, "C40", (0.0, 0.0, 0.0)),  # no end
        (CLICK, "C4.", (0.0, 0.0, 0.0)),
        (CLICK, "40C.", (0.0, 0.0, 0.0)),
        (SWIPE, "Su.", (0.1, 0.3, 0.6)),
        (SWIPE, "Sd.", (0.1, 0.3, 0.0)),
        (SWIPE, "Tx.", (0.1, 0.0, 0.0)),
        (SWIPE, "Sx.", (0.0, 0.0, 0.0)),
        (TYPE, "Ty.", (0.1, 0.3, 0.6)),
        (TYPE, "Tz.", (0.1, 0.3, 0.0)),
        (TYPE, "Ty", (0.0, 0.0, 0.0)),
    ],
)
def test_parts_of_the_reward(prompt, action, parts):
    found, right = earned(prompt, action)
    assert found == pytest.approx(parts, abs=1e-6)
    assert right == (parts[2] > 0)


def test_demonstrations_earn_everything_and_noise_costs():
    prompts = TASK.prompts(400, torch.Generator().manual_seed(0))
    shares = []
    for noise in (0.0, 0.5):
        tokens = TASK.demonstrations(prompts, torch.Generator().manual_seed(1), noise)
        given = Responses(tokens, tokens > 0, torch.zeros(tokens.shape))
        total = torch.stack([*TASK.rewards(prompts, given).values()]).sum(dim=0)
        shares.append(float((total > 0.99).float().mean()))
        assert float(total.min()) >= 0.1 - 1e-6
    assert shares[0] == 1.0
    assert 0.45 < shares[1] < 0.7


def test_prompts_have_a_level_an_id_and_room():
    prompts = TASK.prompts(3000, torch.Generator().manual_seed(0))
    assert prompts.levels.unique().tolist() == [1, 2, 3, 4, 5, 6]
    assert bool((prompts.mask.sum(dim=1) == 14 + prompts.levels).all())
    equal = torch.unique(prompts.tokens, dim=0)
    assert len(prompts.ids.unique()) == len(equal)
    texts = [TASK.vocabulary.text(row) for row in prompts.tokens[:200]]
    assert all(int(text[-2]) < len(text.split("|")[1]) for text in texts)


def test_final_answers_are_equal_for_equal_actions():
    tokens = torch.tensor([[5, 6, 2, 0], [5, 6, 2, 9], [5, 7, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    found = TASK.final_answers(None, Responses(tokens, mask, torch.zeros(3, 4)))
    assert found[0] == found[1] != found[2]


def test_different_prompts_have_different_ids():
    """Among the 16 000 of this seed two pairs had one id each under an earlier numbering."""
    prompts = TASK.prompts(16_000, torch.Generator().manual_seed(46))
    tokens, first = torch.unique(prompts.tokens, dim=0, return_inverse=True)
    assert len(tokens) < 16_000  # some come twice
    assert len(prompts.ids.unique()) == len(tokens)
    again = torch.zeros(len(tokens), dtype=torch.int64).scatter(0, first, prompts.ids)
    assert torch.equal(again[first], prompts.ids)
