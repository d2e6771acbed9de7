"""Sampling: recorded log-probabilities are exact, rows end where they should, streams are their own."""

import pytest
import torch

from offrl.errors import PolicyError
from offrl.llm.episodes import respond
from offrl.llm.generate import sample
from offrl.llm.models import load_model
from offrl.llm.score import score
from offrl.llm.tasks import load_task
from offrl.llm.text import BOS, EOS, PAD, Prompts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(model, task_name, copies=3, temperature=1.0, count=8, spread=0.0):
    task = load_task(task_name)
    policy = load_model(model, task, 0)
    if spread:  # far from uniform
        with torch.no_grad():
            for p in policy.parameters():
                p.mul_(spread)
    prompts = task.prompts(count, generator(1))
    return (
        task,
        policy,
        prompts,
        sample(policy, prompts, copies=copies, temperature=temperature, generator=generator(2)),
    )


@pytest.mark.parametrize(
    ("model", "task"), [("tiny:dense", "t1"), ("tiny:dense", "t2"), ("tiny:moe", "t2"), ("tiny:table", "t3")]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probs_are_the_teacher_forced_ones(model, task, temperature):
    spread = 1.0 if model == "tiny:table" else 2.0
    _, policy, prompts, responses = drawn(model, task, temperature=temperature, spread=spread)
    many = prompts.repeat(3)
    scores = score(policy, many.tokens, many.mask, responses.tokens, responses.mask, temperature=temperature)
    assert responses.log_probs[responses.mask].std() > 0.01
    torch.testing.assert_close(scores.log_probs, responses.log_probs, atol=1e-5, rtol=0)
    assert (responses.log_probs[~responses.mask] == 0).all()


def test_a_row_ends_with_its_end_token_or_at_its_limit():
    _, _, _, responses = drawn("tiny:dense", "t1", copies=50)
    tokens, mask = responses.tokens, responses.mask
    assert (tokens[~mask] == PAD).all()
    assert ((tokens == EOS).sum(dim=1) <= 1).all()
    for row, kept in zip(tokens.tolist(), mask.tolist(), strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        assert kept == [i < end for i in range(len(row))]
    assert mask.sum(dim=1).unique().tolist() == [1, 2, 3, 4]


def test_limits_hold_row_by_row():
    _, _, prompts, responses = drawn("tiny:dense", "t2", copies=4, count=16)
    assert (responses.lengths == prompts.levels.repeat_interleave(4)).all()
    assert len(prompts.levels.unique()) > 3


def test_forbidden_tokens_are_never_sampled():
    task, _, _, responses = drawn("tiny:dense", "t1", copies=100)
    assert task.allowed[responses.tokens[responses.mask]].all()
    assert not task.allowed[torch.tensor([PAD, BOS])].any()


def test_padding_on_the_left_changes_nothing():
    task = load_task("t1")
    policy = load_model("tiny:dense", task, 0).double()
    prompts = task.prompts(6, generator())
    pad = torch.full((6, 3), PAD)
    wide = Prompts(
        torch.cat([pad, prompts.tokens], 1), torch.cat([pad != PAD, prompts.mask], 1),
        prompts.limits, prompts.ids, prompts.levels,
    )  # fmt: skip
    narrow = sample(policy, prompts, copies=4, generator=generator())
    same = sample(policy, wide, copies=4, generator=generator())
    assert torch.equal(narrow.tokens, same.tokens)
    torch.testing.assert_close(narrow.log_probs, same.log_probs, atol=1e-9, rtol=0)


def test_the_stream_decides_and_copies_differ():
    _, policy, prompts, first = drawn("tiny:dense", "t1", copies=6)
    again = sample(policy, prompts, copies=6, generator=generator(2))
    other = sample(policy, prompts, copies=6, generator=generator(3))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert not (first.tokens[0::6] == first.tokens[1::6]).all()


def test_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    drawn("tiny:dense", "t1")
    assert torch.equal(before, torch.get_rng_state())


def test_frequencies_are_those_of_the_policy():
    task, policy, _, responses = drawn("tiny:table", "t3", copies=2000, count=4, temperature=0.5)
    first = torch.bincount(responses.tokens[:, 0] - task.first, minlength=6) / 8000
    want = (policy.logits[0] / 0.5).softmax(0)
    torch.testing.assert_close(first, want.detach(), atol=0.02, rtol=0)


def test_temperature_zero_takes_the_most_probable():
    task, policy, prompts, _ = drawn("tiny:table", "t3")
    best = sample(policy, prompts, temperature=0.0).tokens
    assert best[0, 0] - task.first == policy.logits[0].argmax()
    node = 1 + policy.logits[0].argmax()
    assert best[0, 1] - task.first == policy.logits[node].argmax()


@pytest.mark.parametrize("task", ["t1", "t4a"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_without_probabilities_is_refused(task, temperature):
    """Neither a token of its own nor torch's complaint about a probability tensor."""
    task = load_task(task)
    policy = load_model("tiny:dense", task, 0)
    with torch.no_grad():
        policy.head[3, 0] = torch.nan
    with pytest.raises(PolicyError, match=f"at temperature {temperature:g} are not finite"):
        respond(policy, task, task.prompts(2, generator()), temperature=temperature, generator=generator())
