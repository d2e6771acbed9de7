"""T3: everything about it can be enumerated."""

import itertools
import math

import pytest
import torch

from offrl.llm.models import load_model
from offrl.llm.tasks import load_task
from offrl.llm.text import Responses


def test_the_base_policy_is_the_table_at_its_start():
    task = load_task("t3")
    found = task.measures(load_model("tiny:table", task, 0))
    base, target = task.base_log_probs(), task.target_log_probs()
    assert float(base.exp().sum()) == pytest.approx(1.0)
    assert found["kl_to_target"] == pytest.approx(float((base.exp() * (base - target)).sum()), abs=1e-5)
    assert found["tv_to_target"] == pytest.approx(
        0.5 * float((base.exp() - target.exp()).abs().sum()), abs=1e-5
    )
    assert found["kl_to_target"] > 0.3


def test_the_target_is_the_base_times_the_exponential_reward():
    task = load_task("t3")
    base, target = task.base_log_probs(), task.target_log_probs()
    strings = list(itertools.product("abcdef", repeat=4))
    gains = [2.0 * ("a" in s) + 3.0 * (s == s[::-1]) for s in strings]
    z = sum(math.exp(float(p) + g) for p, g in zip(base, gains, strict=True))
    for i in (0, 7, 215, 1295):
        assert float(target[i]) == pytest.approx(float(base[i]) + gains[i] - math.log(z))


def test_the_reward_is_features_and_the_prompts_shift():
    task = load_task("t3")
    prompts = task.prompts(50, torch.Generator().manual_seed(0))
    tokens = task.demonstrations(prompts, torch.Generator().manual_seed(1), 0.0)
    found = task.rewards(prompts, Responses(tokens, tokens != 0, torch.zeros(50, 4)))
    for i, row in enumerate(tokens):
        s = task.vocabulary.text(row)
        assert float(found["contains"][i]) == 2.0 * ("a" in s)
        assert float(found["palindrome"][i]) == 3.0 * (s == s[::-1])
        assert found["shift"][i] == task.shifts[prompts.ids[i]]
    assert task.shifts.std() > 3


def test_rloo_with_a_kl_reaches_the_target():
    """Shifts of thousands of nats between prompts do not matter to a baseline of the group."""
    from offrl.llm.learner import Learner
    from offrl.llm.methods import load_method
    from offrl.llm.options import LLMOptions

    task, method = load_task("t3"), load_method("rloo")
    options = LLMOptions(model="tiny:table", task="t3", prompts=8, group=16, lr=0.05, max_grad_norm=1e9)
    made = Learner(method, method.config(kl=1.0), task, load_model("tiny:table", task, 0), options)
    before = task.measures(made.policy)
    for _ in range(150):
        made.update()
    after = task.measures(made.policy)
    assert before["tv_to_target"] > 0.3
    assert after["tv_to_target"] < 0.09
    assert after["kl_to_target"] < 0.05
