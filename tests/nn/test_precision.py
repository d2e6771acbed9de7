"""Precision: float32 stays float32, bfloat16 is bfloat16 inside and float32 outside, nothing leaks out."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.nn import precision
from offrl.nn.gradients import compiled, gradients
from offrl.nn.mlp import detached, init_mlp, mlp
from offrl.nn.precision import Precision
from offrl.training.seeding import streams

HIDDEN = 64


@pytest.fixture
def any_cpu(monkeypatch):
    """bfloat16 is computed on every CPU, only slowly on some."""
    monkeypatch.setattr(precision, "_has_bf16", lambda kind: True)


def network():
    params = init_mlp((5, HIDDEN, HIDDEN, 2), 2, streams((0,), "init"))
    return params, torch.randn(1, 32, 5, generator=torch.Generator().manual_seed(1))


def value_and_gradients(params, x):
    x = x.requires_grad_()
    out = mlp(params, x)
    return out.detach(), torch.autograd.grad(out.square().mean(), [x, *params])


def test_float32_is_as_exact_as_float32_inside_the_context():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(300, 300, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    usual = (a @ b - exact).abs().max()
    with Precision("float32", "cpu"):
        inside = a @ b
    assert inside.dtype == torch.float32
    assert (inside - exact).abs().max() <= 4 * usual


def test_the_context_leaves_no_trace_and_can_be_entered_again(any_cpu):
    for name in ("float32", "bf16"):
        context = Precision(name, "cpu")
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), context:
                1 / 0  # noqa: B018
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.is_autocast_enabled("cpu")


def test_bf16_rounds_layers_but_not_what_goes_in_and_out(any_cpu):
    """Outputs and gradients are float32, near the float32 ones and not equal; parameters are untouched."""
    params, x = network()
    kept = [p.clone() for p in detached(params)]
    want, want_grads = value_and_gradients(params, x)
    with Precision("bf16", "cpu"):
        got, grads = value_and_gradients(params, x)
    assert got.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in grads)
    assert 1e-5 < (got - want).abs().max() < 0.05 * want.abs().max()
    for g, w in zip(grads, want_grads, strict=True):
        assert g.shape == w.shape
        assert (g - w).norm() < 0.05 * w.norm()
    assert all(torch.equal(a, b) for a, b in zip(kept, params, strict=True))


def test_a_bf16_step_is_that_of_layers_rounded_by_hand(any_cpu):
    """Weights, input and hidden layers rounded to 8 bits; sums in float32."""
    params, x = network()
    with Precision("bf16", "cpu"):
        got = mlp(detached(params), x)

    def rounded(t):
        return t.bfloat16().float()

    h = rounded(x).expand(2, -1, -1)
    for i in (0, 2):
        h = rounded(torch.relu(rounded(torch.baddbmm(rounded(params[i + 1]), h, rounded(params[i])))))
    want = rounded(torch.baddbmm(rounded(params[5]), rounded(params[4]), h.transpose(1, 2)))
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.005)


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(precision, "_has_bf16", lambda kind: False)
    with pytest.raises(ConfigError, match="bf16 needs hardware"):
        Precision("bf16", "cpu")
    Precision("float32", "cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", ["float32", "bf16"])
def test_compiled_gradients_are_the_eager_ones(name, any_cpu):
    params, x = network()

    def step(x):
        return gradients(lambda p: ((out := mlp(p, x)).square().mean(), {"out": out.mean()}), params)

    fast = compiled(step)
    with Precision(name, "cpu"):
        want, got = step(x), fast(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("exact", "inside"), [(True, "medium"), (False, "highest")])
def test_onednn_is_asked_for_only_where_it_is_exact(monkeypatch, exact, inside):
    monkeypatch.setattr(precision, "onednn_is_exact", lambda: exact)
    with Precision("float32", "cpu"):
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == "highest"
