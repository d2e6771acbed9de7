"""Stacked networks: their layout, their initial weights, and a gradient that is written by hand."""

import pytest
import torch
from torch import nn

from offrl.nn.mlp import detached, init_mlp, member, mlp, small_outputs_, unstack
from offrl.training.seeding import streams

SIZES, BATCH = (3, 5, 4, 2), 7


def network(copies=1, seeds=(0,), dtype=torch.float64):
    params = init_mlp(SIZES, copies, streams(seeds, "init"))
    return [p.detach().to(dtype).requires_grad_() for p in params]


def inputs(groups, seed=0):
    return torch.randn(
        groups, BATCH, SIZES[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def dropout_masks(groups, rate=0.4):
    generator = torch.Generator().manual_seed(1)
    draws = [
        torch.rand(groups, BATCH, width, generator=generator, dtype=torch.float64) for width in SIZES[1:-1]
    ]
    return [(u >= rate).double() / (1 - rate) for u in draws]


def plain(params, x, masks=None):
    """The same function written layer by layer, one network at a time, for autograd to differentiate."""
    outputs = []
    for g in range(params[0].shape[0]):
        h = x[g * x.shape[0] // params[0].shape[0]]
        for layer in range(len(SIZES) - 2):
            h = torch.relu(h @ params[2 * layer][g] + params[2 * layer + 1][g])
            h = h if masks is None else h * masks[layer][g]
        outputs.append((h @ params[-2][g].T + params[-1][g].T).T)
    return torch.stack(outputs)


def test_the_output_is_that_of_linear_layers_and_relus():
    """``unstack`` gives torch.nn.Linear's layout, so a Sequential filled with it computes the same."""
    params, x = network(copies=2, seeds=(0, 1)), inputs(4)
    out = mlp(params, x)
    assert out.shape == (4, SIZES[-1], BATCH)
    for g in range(4):
        layers = []
        for weight, bias in unstack(params, g):
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, nn.ReLU()]
        torch.testing.assert_close(nn.Sequential(*layers[:-1])(x[g]).T, out[g])


def test_unstacked_layers_are_copies():
    params = network()
    before = params[-2].detach().clone()
    for weight, bias in unstack(params, 0):
        assert not weight.requires_grad
        weight.fill_(9.0)
        bias.fill_(9.0)
    assert torch.equal(params[-2], before)


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize(("seeds", "copies"), [((0,), 1), ((0, 1, 2), 2)], ids=["one", "S3E2"])
def test_the_gradient_is_autograds(seeds, copies, dropout):
    """dL/d(every parameter, input) equals autograd's through the plain composition, to float64 rounding.

    With E = 2 members the input is shared, so its gradient is the sum over the members of its seed.
    """
    params, x = network(copies, seeds), inputs(len(seeds)).requires_grad_()
    masks = dropout_masks(len(seeds) * copies) if dropout else None
    direction = torch.randn(len(seeds) * copies, SIZES[-1], BATCH, dtype=torch.float64)
    ours, reference = mlp(params, x, masks), plain(params, x, masks)
    torch.testing.assert_close(ours, reference)
    got = torch.autograd.grad((ours * direction).sum(), [x, *params])
    want = torch.autograd.grad((reference * direction).sum(), [x, *params])
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_the_gradient_agrees_with_finite_differences(dropout):
    """Central differences of every input and parameter, step 1e-6, in float64 (no kink lies that close)."""
    params, x = network(copies=2, seeds=(3,)), inputs(2).requires_grad_()
    masks = dropout_masks(2) if dropout else None
    grads = torch.autograd.grad(mlp(params, x, masks).square().sum(), [x, *params])
    for values, grad in zip([x, *params], grads, strict=True):
        flat = values.detach().view(-1)
        for i, got in enumerate(grad.flatten().tolist()):
            sides = []
            for step in (1e-6, -1e-6):
                flat[i] += step
                sides.append(mlp(detached(params), x.detach(), masks).square().sum().item())
                flat[i] -= step
            assert got == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_a_members_input_is_its_own_seeds():
    """Networks are seed-major: G = 2 s + j, and member j of seed s sees x[s]."""
    params, x = network(copies=2, seeds=(0, 1, 2)), inputs(3)
    out = mlp(params, x)
    for j in range(2):
        torch.testing.assert_close(out[j::2], mlp(member(params, j, 2), x))
    torch.testing.assert_close(out, mlp(params, x.repeat_interleave(2, dim=0)))


def test_member_and_detached_are_views():
    params = network(copies=2, seeds=(0, 1))
    second, constant = member(detached(params), 1, 2), detached(params)
    with torch.no_grad():
        params[0][3, 0, 0] = 42.0
    assert second[0][1, 0, 0] == 42.0
    assert constant[0][3, 0, 0] == 42.0
    assert not any(p.requires_grad for p in [*second, *constant])


@pytest.mark.parametrize(
    ("weights", "input_too", "products"),
    [(True, True, 6), (True, False, 5), (False, True, 3)],
    ids=["all", "weights only", "input only"],
)
def test_only_the_wanted_gradients_are_computed(monkeypatch, weights, input_too, products):
    """Three layers: one product a layer for the weights' gradients, one for the flow to the layer below.

    A critic's loss does not need the flow into the input (5 products), an actor's loss through the critic
    does not need the critic's weight gradients (3 products).
    """
    params, x = network(), inputs(1).requires_grad_(input_too)
    params = params if weights else detached(params)
    out = mlp(params, x)
    wanted = [*(params if weights else []), *([x] if input_too else [])]
    calls, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args, **kwargs: calls.append(1) or bmm(*args, **kwargs))
    got = torch.autograd.grad(out.sum(), wanted)
    assert len(calls) == products
    reference = torch.autograd.grad(plain(params, x).sum(), wanted)
    torch.testing.assert_close(got, reference)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_frozen_layer_leaves_the_others_gradients_right(layer):
    """Each layer's gradients are computed by its own need: freezing one changes none of the rest."""
    params, x = network(), inputs(1)
    params[2 * layer].requires_grad_(False)
    params[2 * layer + 1].requires_grad_(False)
    wanted = [p for p in params if p.requires_grad]
    got = torch.autograd.grad(mlp(params, x).sum(), wanted)
    torch.testing.assert_close(got, torch.autograd.grad(plain(params, x).sum(), wanted))


def test_a_second_derivative_is_refused_rather_than_wrong():
    params, x = network(), inputs(1)
    (first,) = torch.autograd.grad(mlp(params, x).square().sum(), params[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_second_backward_repeats_the_first():
    """The backward leaves the saved layers as they were."""
    params, x = network(), inputs(1).requires_grad_()
    out = mlp(params, x)
    first = torch.autograd.grad(out.sum(), [x, *params], retain_graph=True)
    second = torch.autograd.grad(out.sum(), [x, *params])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_backward_leaves_what_it_was_given_unchanged():
    """It works in place, but only on its own memory."""
    params, x, masks = network(), inputs(1).requires_grad_(), dropout_masks(1)
    out = mlp(params, x, masks)
    given = [x.detach(), *detached(params), *masks, torch.randn_like(out)]
    kept = [t.clone() for t in given]
    torch.autograd.grad(out, [x, *params], given[-1])
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("hidden", [(4, 4), (5, 4)], ids=["equal widths", "unequal widths"])
def test_networks_that_are_alive_together_share_no_memory(hidden):
    """Layers are computed in place. Three graphs of one shape are built, calls
    without gradients run in between, and the backwards come in another order: values and gradients are those
    of each graph alone, and no later call changes what an earlier one returned.
    """
    sizes = (3, *hidden, 2)
    nets = [
        [p.detach().double().requires_grad_() for p in init_mlp(sizes, 1, streams((k,), "init"))]
        for k in range(3)
    ]
    xs = [inputs(1, seed=k).requires_grad_() for k in range(3)]

    def reference(k):
        h = xs[k][0]
        for layer in range(2):
            h = torch.relu(h @ nets[k][2 * layer][0] + nets[k][2 * layer + 1][0])
        out = h @ nets[k][-2][0].T + nets[k][-1][0].T
        return out.T[None], torch.autograd.grad(out.square().sum(), [xs[k], *nets[k]])

    outs = [mlp(nets[k], xs[k]) for k in range(3)]
    results = {}
    for k in (1, 0, 2):
        mlp(detached(nets[k]), xs[k].detach() + 1.0)
        results[k] = torch.autograd.grad(outs[k].square().sum(), [xs[k], *nets[k]])
        (again := mlp(nets[k], xs[k])).sum().backward()
        torch.testing.assert_close(again, outs[k])
    for k in range(3):
        out, grads = reference(k)
        torch.testing.assert_close(outs[k], out)
        torch.testing.assert_close(results[k], grads)


def test_calls_in_inference_mode_leave_training_alone():
    """Rollouts run in inference mode. Memory made there may not be written outside: none may reach the pool.

    The batch has a size of its own, so that the first call finds no memory from another test.
    """
    params, x = network(), torch.randn(1, 13, SIZES[0], dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(mlp(detached(params), x), plain(detached(params), x))
    want = torch.autograd.grad(plain(params, x).sum(), params)
    torch.testing.assert_close(torch.autograd.grad(mlp(params, x).sum(), params), want)
    with torch.inference_mode():
        mlp(detached(params), x)


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
def test_the_form_that_is_compiled_computes_the_same(monkeypatch, dropout):
    """Under torch.compile ``mlp`` is a plain composition; values and gradients equal the written node's."""
    params, x = network(copies=2, seeds=(0, 1)), inputs(2).requires_grad_()
    masks = dropout_masks(4) if dropout else None
    eager = mlp(params, x, masks)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = mlp(params, x, masks)
    torch.testing.assert_close(compiled, eager)
    grads = [torch.autograd.grad(out.square().sum(), [x, *params]) for out in (eager, compiled)]
    torch.testing.assert_close(*grads)


def test_initial_weights_are_uniform_within_one_over_the_root_of_the_fan_in():
    """torch's default for nn.Linear: weights and biases U(-1/sqrt(in), 1/sqrt(in)), whose std is that /
    sqrt(3).

    Of n draws the sample std has standard error std sqrt((9/5 - 1) / (4 n)) (a uniform's kurtosis is 9/5) and
    the sample mean std / sqrt(n); both are held to 5 of them. The largest of n falls short of the bound by
    more than 10/n of it with probability exp(-5) a side.
    """
    sizes = (64, 100, 16, 50)
    params = init_mlp(sizes, 3, streams((0, 1), "init"))
    assert [tuple(p.shape) for p in params] == [
        (6, 64, 100), (6, 1, 100), (6, 100, 16), (6, 1, 16), (6, 50, 16), (6, 50, 1)
    ]  # fmt: skip
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float32 for p in params)
    for layer, fan_in in enumerate(sizes[:-1]):
        bound = fan_in**-0.5
        for values in params[2 * layer : 2 * layer + 2]:
            v, n = values.detach().double(), values.numel()
            std = bound / 3**0.5
            assert v.abs().max() <= bound
            assert v.max() > bound * (1 - 10 / n)
            assert v.min() < -bound * (1 - 10 / n)
            assert abs(v.mean().item()) < 5 * std / n**0.5
            assert abs(v.std().item() - std) < 5 * std * (0.2 / n) ** 0.5


def test_adding_seeds_changes_no_seeds_weights():
    """Each seed draws from its own stream, so seed k of a stack starts where its single run starts."""
    stacked = init_mlp(SIZES, 2, streams((4, 5, 6), "init"))
    for k, seed in enumerate((4, 5, 6)):
        single = init_mlp(SIZES, 2, streams((seed,), "init"))
        for a, b in zip(stacked, single, strict=True):
            assert torch.equal(a[2 * k : 2 * k + 2], b)
    assert not torch.equal(stacked[0][0], stacked[0][1])  # nor are twins equal
    assert not torch.equal(stacked[0][0], stacked[0][2])


def test_a_network_without_hidden_layer_is_refused():
    with pytest.raises(ValueError, match=r"at least one hidden layer, got sizes \(3, 2\)"):
        init_mlp((3, 2), 1, streams((0,), "init"))


def test_small_outputs_are_edacs():
    """Hidden biases 0.1, hidden weights as drawn, the output layer and its bias spread over (-bound, bound)."""
    params = init_mlp((5, 64, 64, 8), 3, streams((0, 1), "init"))
    hidden = [p.clone() for p in params[:4:2]]
    small_outputs_(params, 3e-3)
    assert all(torch.equal(a, b) for a, b in zip(hidden, params[:4:2], strict=True))
    assert all((bias == 0.1).all() for bias in params[1:-2:2])
    for p in params[-2:]:
        assert 0.8 * 3e-3 < p.abs().max() <= 3e-3
