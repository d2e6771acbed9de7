"""T2's sums, by hand."""

import pytest
import torch

from offrl.llm.tasks import load_task
from offrl.llm.text import Responses


@pytest.mark.parametrize("name", ["t2", "t2-hard"])
def test_demonstrations_are_running_sums_and_right(name):
    task, g = load_task(name), torch.Generator().manual_seed(0)
    prompts = task.prompts(200, g)
    tokens = task.demonstrations(prompts, g, 0.0)
    for prompt, row, k in zip(prompts.tokens, tokens, prompts.levels.tolist(), strict=True):
        text = task.vocabulary.text(prompt)
        assert len(text) == k + 1
        digits = [int(d) for d in text[:-1]]
        want = [sum(digits[: i + 1]) % task.base for i in range(k)]
        assert [int(d) for d in task.vocabulary.text(row)] == want
    responses = Responses(tokens, tokens != 0, torch.zeros(tokens.shape))
    assert task.success(prompts, responses).all()
    assert prompts.levels.unique().tolist() == list(range(1, 9))
    assert torch.equal(prompts.limits, prompts.levels)


def test_only_the_last_token_counts():
    task, g = load_task("t2"), torch.Generator().manual_seed(0)
    prompts = task.prompts(50, g)
    tokens = task.sums(prompts)
    rows = torch.arange(50)
    spoiled = tokens.clone()
    spoiled[:, 0] = task.zero + (tokens[:, 0] - task.zero + 1) % 5
    found = task.success(prompts, Responses(spoiled, tokens != 0, torch.zeros(50, 8)))
    assert torch.equal(found, prompts.levels > 1)
    spoiled = tokens.clone()
    last = prompts.levels - 1
    spoiled[rows, last] = task.zero + (tokens[rows, last] - task.zero + 1) % 5
    assert not task.success(prompts, Responses(spoiled, tokens != 0, torch.zeros(50, 8))).any()


def test_equal_prompts_have_equal_ids():
    task = load_task("t2")
    prompts = task.prompts(3000, torch.Generator().manual_seed(0))
    texts = [tuple(row) for row in prompts.tokens.tolist()]
    assert (
        len(set(texts))
        == len(set(zip(texts, prompts.ids.tolist(), strict=True)))
        == len(prompts.ids.unique())
    )
