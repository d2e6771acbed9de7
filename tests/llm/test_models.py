"""``--precision bf16``: layers in bfloat16, everything else in float32."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.generate import sample
from offrl.llm.methods import load_method
from offrl.llm.options import LLMOptions
from offrl.llm.score import score
from offrl.llm.session import build, start
from offrl.nn import precision


@pytest.fixture(autouse=True)
def _any_chip(monkeypatch):
    monkeypatch.setattr(precision, "_has_bf16", lambda kind: True)


def built(**options):
    given = {"prompts": 4, "group": 4, "task": "t1", **options}
    return build("grpo", load_method("grpo").config(), LLMOptions(**given))


@pytest.mark.parametrize("model", ["tiny:dense", "tiny:moe"])
def test_it_rounds_the_layers_and_nothing_else(model):
    half, full = built(precision="bf16", model=model), built(model=model)
    prompts = half.task.prompts(16, torch.Generator().manual_seed(0))
    found = sample(full.policy, prompts, copies=4, generator=torch.Generator().manual_seed(1))
    many = prompts.repeat(4)
    gradients, log_probs = [], []
    for made in (half, full):
        scores = score(made.policy, many.tokens, many.mask, found.tokens, found.mask)
        assert scores.log_probs.dtype == scores.hidden.dtype == torch.float32
        gradient = torch.autograd.grad(scores.log_probs.sum(), made.parameters, allow_unused=True)
        assert {g.dtype for g in gradient if g is not None} == {torch.float32}
        gradients.append(torch.cat([g.flatten() for g in gradient if g is not None]))
        log_probs.append(scores.log_probs.detach())
    error = (
        (log_probs[0] - log_probs[1]).abs().mean()
    )  # of single tokens more, where rounding turns to another expert
    assert 1e-5 < error < 0.01
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert {p.dtype for p in half.policy.parameters()} == {torch.float32}


def test_sampling_reads_the_same_layers():
    half = built(precision="bf16")
    prompts = half.task.prompts(16, torch.Generator().manual_seed(0))
    found = sample(half.policy, prompts, copies=4, generator=torch.Generator().manual_seed(1))
    many = prompts.repeat(4)
    with torch.no_grad():
        again = score(half.policy, many.tokens, many.mask, found.tokens, found.mask).log_probs
        half.policy.bf16 = False
        full = score(half.policy, many.tokens, many.mask, found.tokens, found.mask).log_probs
    near, far = ((found.log_probs - x).abs().mean() for x in (again, full))
    assert near < 0.5 * far


def test_a_run_says_so_and_learns(tmp_path):
    options = LLMOptions(
        precision="bf16",
        prompts=8,
        group=8,
        steps=2,
        eval_prompts=8,
        eval_samples=2,
        out=tmp_path,
        log_every=1,
    )
    result = start("grpo", load_method("grpo").config(), options)
    assert '"precision": "bf16"' in (result.directory / "config.json").read_text()
    rows = (result.directory / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3


def test_a_table_and_a_chip_without_it_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="tiny:table has no layers: leave --precision out"):
        built(precision="bf16", task="t3", model="tiny:table")
    monkeypatch.setattr(precision, "_has_bf16", lambda kind: False)
    with pytest.raises(ConfigError, match="precision bf16 needs hardware for it"):
        built(precision="bf16")
