"""Log-probabilities and entropies from hidden states against the dense ones; peak memory in fresh processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from offrl.estimators import low_memory

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/bench_core.py"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(low_memory, "ROWS", 5)
    monkeypatch.setattr(low_memory, "VOCABULARY", 7)


def inputs(dtype=torch.float64, rows=(3, 4), hidden=6, vocabulary=31):
    g = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    tokens = torch.randint(vocabulary, rows, generator=g)
    return make(*rows, hidden), make(vocabulary, hidden), tokens, make(vocabulary)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("which", ["log_prob", "entropy", "both"])
def test_values_and_gradients_are_the_dense_ones(small_chunks, with_bias, temperature, which):
    """Property 7."""
    h, w, tokens, b = inputs()
    leaves = [h, w, b] if with_bias else [h, w]
    g = torch.Generator().manual_seed(1)
    up, upe = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    logits = (h @ w.T + (b if with_bias else 0.0)) / temperature
    dense = low_memory.from_logits(logits, tokens)
    ours = low_memory.log_probs_and_entropy(h, w, tokens, b if with_bias else None, temperature=temperature)
    for x, y in zip(ours, dense, strict=True):
        torch.testing.assert_close(x, y)
    factors = {"log_prob": (1, 0), "entropy": (0, 1), "both": (1, 1)}[which]
    totals = [(factors[0] * up * x + factors[1] * upe * y).sum() for x, y in (ours, dense)]
    for x, y in zip(*(torch.autograd.grad(total, leaves) for total in totals), strict=True):
        torch.testing.assert_close(x, y)


def test_the_gradient_in_the_logits_is_the_analytic_one():
    """1[v = a] - p_v, with the identity as the head."""
    logits = torch.tensor([[0.2, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    log_p, _ = low_memory.log_probs_and_entropy(
        logits, torch.eye(3, dtype=torch.float64), torch.tensor([1]), entropy=False
    )
    (got,) = torch.autograd.grad(log_p.sum(), logits)
    want = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64) - logits.detach().softmax(1)
    torch.testing.assert_close(got, want)


def test_without_entropy(small_chunks):
    h, w, tokens, _ = inputs()
    log_p, entropy = low_memory.log_probs_and_entropy(h, w, tokens, entropy=False)
    assert entropy is None
    want = low_memory.from_logits(h @ w.T, tokens)[0]
    torch.testing.assert_close(log_p, want)
    (got,), (expected,) = (torch.autograd.grad(x.sum(), h) for x in (log_p, want))
    torch.testing.assert_close(got, expected)


def test_huge_logits_stay_finite(small_chunks):
    h, w, tokens, _ = inputs(torch.float32)
    log_p, entropy = low_memory.log_probs_and_entropy(h * 1e4, w, tokens)
    want = low_memory.from_logits(h.double() @ w.double().T * 1e4, tokens)
    torch.testing.assert_close(log_p.double(), want[0], rtol=1e-4, atol=1.0)
    torch.testing.assert_close(entropy.double(), want[1], atol=1e-2, rtol=0)
    (gradient,) = torch.autograd.grad((log_p + entropy).sum(), w)
    assert gradient.isfinite().all()


def test_bfloat16_sums_in_float32(small_chunks):
    h, w, tokens, _ = inputs(torch.bfloat16, hidden=64)
    log_p, entropy = low_memory.log_probs_and_entropy(h, w, tokens)
    assert log_p.dtype == entropy.dtype == torch.float32
    want = low_memory.from_logits(h.float() @ w.float().T, tokens)
    torch.testing.assert_close(log_p, want[0], atol=0.15, rtol=0.01)
    for leaf in torch.autograd.grad((log_p + entropy).sum(), (h, w)):
        assert leaf.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_no_probabilities_above_one(small_chunks, dtype):
    """The chosen logit is rounded as those of the sum are: what the dense way gives, entropy near 0 included."""
    h, w, _, b = inputs(dtype, rows=(200,), hidden=64)
    logits = (2 * h @ w.T).float() + b
    tokens = logits.argmax(dim=1)  # the likeliest, nearly certain
    log_p, entropy = low_memory.log_probs_and_entropy(2 * h, w, tokens, b)
    assert (log_p <= 0).all()
    want = low_memory.from_logits(logits, tokens)
    torch.testing.assert_close(log_p, want[0], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(entropy, want[1], atol=1e-2, rtol=1e-2)


def test_only_wanted_gradients_are_returned(small_chunks):
    h, w, tokens, _ = inputs()
    log_p, entropy = low_memory.log_probs_and_entropy(h, w.detach(), tokens)
    (got,) = torch.autograd.grad((log_p + entropy).sum(), h)
    log_p, entropy = low_memory.log_probs_and_entropy(h.detach(), w, tokens)
    torch.autograd.grad((log_p + entropy).sum(), w)
    dense = low_memory.from_logits(h @ w.detach().T, tokens)
    torch.testing.assert_close(got, torch.autograd.grad(sum(dense).sum(), h)[0])


def extra_megabytes(kind, tokens, vocabulary, hidden):
    """Peak memory of one forward and backward beyond inputs and gradients, in a fresh process."""
    arguments = [sys.executable, SCRIPT, "memory", "--kind", kind, "--tokens", str(tokens)]
    arguments += ["--vocabulary", str(vocabulary), "--hidden", str(hidden)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)["extra_megabytes"]


def test_memory_at_a_small_size():
    """1024 x 20000 logits are 82 MB, of which several copies: the chunked way holds a fifth of them at most."""
    sizes = (1024, 20_000, 64)
    chunked = min(
        extra_megabytes("chunked", *sizes) for _ in range(2)
    )  # library pages that come in count too
    assert chunked < extra_megabytes("dense", *sizes) / 5


@pytest.mark.slow
def test_memory_at_the_size_of_a_language_model():
    """B*T = 4096, V = 50k, H = 512: an eighth of the dense way's."""
    sizes = (4096, 50_000, 512)
    assert extra_megabytes("chunked", *sizes) <= extra_megabytes("dense", *sizes) / 8
