"""Scores of given responses: entropies over what is allowed; padding has no influence."""

import torch

from offrl.llm.models import load_model
from offrl.llm.score import score
from offrl.llm.tasks import load_task
from offrl.llm.text import PAD


def batch():
    task = load_task("t2")
    policy = load_model("tiny:dense", task, 0).double()
    prompts = task.prompts(9, torch.Generator().manual_seed(0))
    tokens = task.demonstrations(prompts, torch.Generator(), 0.0)
    return task, policy, prompts, tokens


def test_entropy_is_that_of_the_allowed_tokens():
    task, policy, prompts, tokens = batch()
    mask = tokens != PAD
    found = score(policy, prompts.tokens, prompts.mask, tokens, mask, temperature=0.7, entropy=True)
    ids = torch.cat([prompts.tokens, tokens], 1)
    seen = torch.cat([prompts.mask, torch.ones_like(mask)], 1).long()
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    logits = policy.model(input_ids=ids, attention_mask=seen, position_ids=positions).logits
    logits = logits[:, prompts.tokens.shape[1] - 1 : -1] / 0.7
    log_p = logits[..., task.allowed].log_softmax(-1)
    torch.testing.assert_close(found.entropy[mask], -(log_p.exp() * log_p).sum(-1)[mask])
    first_allowed = int(task.allowed.nonzero()[0])
    want = log_p.gather(-1, (tokens - first_allowed).clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found.log_probs[mask], want[mask])


def test_what_stands_at_padding_has_no_influence():
    task, policy, prompts, tokens = batch()
    mask = tokens != PAD
    assert not mask.all()
    found = []
    for fill in (PAD, task.zero + 1):
        policy.zero_grad()
        scores = score(policy, prompts.tokens, prompts.mask, tokens.where(mask, fill), mask, entropy=True)
        (scores.log_probs + scores.entropy).sum().backward()
        found.append((scores.log_probs, policy.head.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    assert (found[0][0][~mask] == 0).all()


def test_shared_prompts_read_once_give_the_same_scores_and_gradients():
    task, policy, prompts, _ = batch()
    owners = torch.tensor([3, 0, 3, 8, 0, 5])
    tokens = task.demonstrations(prompts.rows(owners), torch.Generator().manual_seed(1), 0.5)
    mask = tokens != PAD
    found = []
    for given in ((prompts.rows(owners), None), (prompts, owners)):
        policy.zero_grad()
        scores = score(policy, given[0].tokens, given[0].mask, tokens, mask, entropy=True, owners=given[1])
        (scores.log_probs.square() + scores.entropy).sum().backward()
        found.append((scores.log_probs, scores.entropy, [p.grad.clone() for p in policy.parameters()]))
    # transformers normalizes in float32, also in a model of float64
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
