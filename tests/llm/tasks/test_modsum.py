"""T1's rewards, by hand."""

import torch

from offrl.llm.tasks import load_task
from offrl.llm.text import EOS, Responses


def test_a_response_earns_by_the_token_before_its_end():
    task = load_task("t1")
    prompts = task.prompts(1, torch.Generator().manual_seed(3)).repeat(6)
    d1, d2 = (int(x) - task.zero for x in prompts.tokens[0, 1:3])
    right, wrong = task.zero + (d1 + d2) % 10, task.zero + (d1 + d2 + 1) % 10
    rows = [
        [right, EOS, 0, 0],  # right
        [wrong, right, EOS, 0],  # right: what counts stands before the end
        [right, wrong, EOS, 0],
        [EOS, 0, 0, 0],
        [right, right, right, right],  # never ends
        [wrong, wrong, right, EOS],  # right
    ]
    tokens = torch.tensor(rows)
    responses = Responses(tokens, tokens != 0, torch.zeros(6, 4))
    assert task.rewards(prompts, responses)["correct"].tolist() == [1, 1, 0, 0, 0, 1]
    assert task.final_answers(prompts, responses).tolist() == [right, right, wrong, -1, -1, right]
    short = Responses(tokens[3:4, :1], tokens[3:4, :1] != 0, torch.zeros(1, 1))
    assert task.final_answers(prompts.rows(slice(1)), short).tolist() == [-1]


def test_demonstrations_are_right_and_noise_is_its_share():
    task, g = load_task("t1"), torch.Generator().manual_seed(0)
    prompts = task.prompts(4000, g)
    for noise, share in ((0.0, 1.0), (0.5, 0.55)):
        tokens = task.demonstrations(prompts, g, noise)
        found = task.success(prompts, Responses(tokens, tokens != 0, torch.zeros(tokens.shape)))
        assert abs(float(found.float().mean()) - share) < 0.03
    assert len(prompts.ids.unique()) == 100
