"""T5's three rewards, by hand."""

import pytest
import torch

from offrl.llm.tasks import load_task
from offrl.llm.text import BOS, EOS, Prompts, Responses, left_padded


def by_hand(task, text, response):
    """Rewards of one response, a full stop for the end."""
    ids = [BOS, *task.vocabulary.ids(text)]
    one = torch.tensor([len(text) - 2])  # "23=" has two digits and difficulty 1
    prompts = Prompts(*left_padded([ids], task.max_prompt), torch.tensor([8]), one, one)
    tokens = [EOS if symbol == "." else task.vocabulary.ids(symbol)[0] for symbol in response]
    row = torch.tensor([tokens + [0] * (8 - len(tokens))])
    found = task.rewards(prompts, Responses(row, row != 0, torch.zeros(row.shape)))
    return [int(found[name]) for name in ("format", "length", "correct")]


@pytest.mark.parametrize(
    ("text", "response", "want"),
    [
        ("24=", "?21.", [1, 1, 1]),
        ("24=", "?221.", [1, 0, 1]),  # four tokens, three are allowed
        ("244=", "?210.", [1, 1, 1]),
        ("2443=", "?2103.", [1, 1, 1]),
        ("2443=", "?21033.", [1, 0, 1]),
        ("24=", "1.", [0, 1, 1]),
        ("24=", "?.", [0, 1, 0]),  # "?" is no digit
        ("24=", "?2?.", [0, 1, 0]),
        ("24=", "?2.", [1, 1, 0]),
        ("24=", "1?1.", [0, 1, 1]),
        ("24=", ".", [0, 0, 0]),
        ("24=", "?2222221", [0, 0, 0]),  # never ends
        ("24=", "?222221.", [1, 0, 1]),
    ],
)
def test_rewards(text, response, want):
    assert by_hand(load_task("t5"), text, response) == want
    conditioned = [want[0], want[1] * want[2], want[2]]
    assert by_hand(load_task("t5-conditioned"), text, response) == conditioned


def test_final_answers():
    task = load_task("t5")
    rows = torch.tensor([[*task.vocabulary.ids("?3"), EOS, 0], task.vocabulary.ids("?333"), [EOS, 0, 0, 0]])
    found = task.final_answers(None, Responses(rows, rows != 0, torch.zeros(rows.shape)))
    assert found.tolist() == [task.zero + 3, -1, -1]


@pytest.mark.parametrize("name", ["t5", "t5-conditioned"])
def test_demonstrations_without_noise_earn_everything(name):
    task, g = load_task(name), torch.Generator().manual_seed(0)
    prompts = task.prompts(500, g)
    tokens = task.demonstrations(prompts, g, 0.0)
    found = task.rewards(prompts, Responses(tokens, tokens != 0, torch.zeros(tokens.shape)))
    assert all((value == 1).all() for value in found.values())
    assert prompts.levels.unique().tolist() == [1, 2, 3]
    assert ((tokens != 0).sum(1) == prompts.levels + 3).all()  # "?", k sums, the end


def test_demonstrations_with_noise_miss_each_reward_at_its_own_rate():
    task, g = load_task("t5"), torch.Generator().manual_seed(0)
    prompts = task.prompts(4000, g)
    tokens = task.demonstrations(prompts, g, 0.5)
    assert task.allowed[tokens[tokens != 0]].all()
    found = task.rewards(prompts, Responses(tokens, tokens != 0, torch.zeros(tokens.shape)))
    # without "?" one extra digit is still short: 1/2 + 1/2 1/2 1/2
    want = {"format": 0.5, "length": 0.625, "correct": 0.5 + 0.5 / 5}
    for key, share in want.items():
        assert abs(float(found[key].mean()) - share) < 0.03, key


def test_equal_prompts_have_equal_ids():
    task = load_task("t5")
    prompts = task.prompts(3000, torch.Generator().manual_seed(0))
    texts = [tuple(row) for row in prompts.tokens.tolist()]
    pairs = set(zip(texts, prompts.ids.tolist(), strict=True))
    assert len(set(texts)) == len(pairs) == len(prompts.ids.unique())
