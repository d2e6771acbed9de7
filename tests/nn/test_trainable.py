"""A network with its optimizer and target copy: Adam's step, the target's direction, exact restore."""

import copy

import pytest
import torch

from offrl.nn.gradients import gradients
from offrl.nn.mlp import init_mlp, mlp
from offrl.nn.trainable import Trainable
from offrl.training.seeding import streams


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


def test_the_steps_are_adams():
    """m <- .9 m + .1 g, v <- .999 v + .001 g^2, x <- x - lr m^ / (sqrt(v^) + 1e-8), in float64 by hand."""
    net = Trainable([leaf(1.0, -2.0, 0.5)], lr=0.1)
    x, m, v = net.params[0].detach().double().clone(), 0.0, 0.0
    for t in range(1, 6):
        g = torch.tensor([0.3, -2.0, 1e-3], dtype=torch.float64) * t
        net.apply([g.float()])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(net.params[0].detach().double(), x, rtol=1e-5, atol=1e-6)


def test_the_epsilon_of_adam_is_one_in_a_hundred_million():
    """The first step is lr g / (|g| + eps): a gradient of exactly eps = 1e-8 moves by half a step size."""
    net = Trainable([leaf(0.0)], lr=0.1)
    net.apply([torch.tensor([1e-8])])
    assert net.params[0].item() == pytest.approx(-0.05, rel=1e-3)


def test_nothing_decays_without_a_gradient():
    net = Trainable([leaf(1.0, -3.0)], lr=0.1)
    net.apply([torch.zeros(2)])
    assert torch.equal(net.params[0], torch.tensor([1.0, -3.0]))


def test_weight_decay_is_an_l2_penalty_in_the_gradient():
    """g + decay x enters the moments, as in torch.optim.Adam; it is not AdamW's shrinking beside them."""
    net = Trainable([leaf(1.0, -3.0, 0.0)], lr=0.1, weight_decay=0.2)
    x = leaf(1.0, -3.0, 0.0)
    adam = torch.optim.Adam([x], lr=0.1, weight_decay=0.2)
    for t in range(4):
        x.grad = torch.tensor([0.5, 0.1, -0.2 * t])
        net.apply([x.grad])
        adam.step()
    torch.testing.assert_close(net.params[0], x)
    assert net.params[0][0].item() < 0.61  # nearly 0.1 a step; AdamW would add 0.02 to each


def test_minimize_computes_and_moves_its_own_network_only():
    """The loss depends on two networks; the other one gets neither a gradient nor a step."""
    own, other = Trainable([leaf(1.0)], lr=0.1), Trainable([leaf(1.0)], lr=0.1)
    own.minimize((own.params[0] * other.params[0]).sum())
    assert own.params[0].item() == pytest.approx(0.9)
    assert other.params[0].item() == 1.0
    assert other.params[0].grad is None


@pytest.mark.parametrize("layout", ["transposed", "expanded"])
def test_a_gradient_in_another_memory_layout_makes_the_same_step(layout):
    """autograd hands out views: the gradient of w.sum() is one expanded number, that of a transpose is
    transposed.
    """
    grad = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]).T.contiguous().T
    if layout == "expanded":
        grad = torch.tensor([[3.0], [-1.0]]).expand(2, 3)
    assert not grad.is_contiguous()
    plain, other = (Trainable([torch.zeros(2, 3, requires_grad=True)], lr=0.1) for _ in range(2))
    for scale in (1.0, 0.1):
        plain.apply([scale * grad.contiguous()])
        other.apply([scale * grad if scale != 1.0 else grad])
    assert torch.equal(plain.params[0], other.params[0])


def test_the_step_size_may_change_between_steps():
    net = Trainable([leaf(0.0)], lr=0.1)
    net.apply([torch.ones(1)])
    net.lr = 0.0
    net.apply([torch.ones(1)])
    assert net.params[0].item() == pytest.approx(-0.1)


def test_the_constant_view_follows_the_parameters():
    net = Trainable([leaf(1.0)], lr=0.1)
    net.apply([torch.ones(1)])
    assert net.constant[0].item() == net.params[0].item() == pytest.approx(0.9)
    assert not net.constant[0].requires_grad


def test_the_target_steps_towards_the_online_network():
    """target <- target + tau (online - target), from equal values: after the first step the gap is 1 - tau.

    The online network stays; with it held, n further steps leave (1 - tau)^n of the gap.
    """
    net = Trainable([leaf(0.0), leaf(10.0)], lr=0.1, target=True)
    assert [t.item() for t in net.target] == [0.0, 10.0]
    with torch.no_grad():
        net.params[0].fill_(1.0)
        net.params[1].fill_(20.0)
    assert [t.item() for t in net.target] == [0.0, 10.0]  # a copy, not a view
    net.update_target(0.25)
    assert [t.item() for t in net.target] == [0.25, 12.5]
    for _ in range(4):
        net.update_target(0.25)
    assert net.target[0].item() == pytest.approx(1 - 0.75**5)
    assert [p.item() for p in net.params] == [1.0, 20.0]
    assert not any(t.requires_grad for t in net.target)


def test_a_network_without_target_says_so():
    net = Trainable([leaf(1.0)], lr=0.1)
    with pytest.raises(RuntimeError, match="no target copy"):
        net.update_target(0.1)
    assert "target" not in net.state_dict()


def trained(steps, seed=0):
    net = Trainable(init_mlp((2, 4, 1), 1, streams((seed,), "init")), 1e-2, target=True)
    return go_on(net, range(steps))


def go_on(net, steps):
    for i in steps:
        x = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(i))
        net.minimize(mlp(net.params, x).square().sum())
        net.update_target(0.1)
    return net


def test_restored_training_goes_on_bit_for_bit():
    """Weights, target and Adam's moments and step count are all in the state: three and three equal six."""
    whole, state = trained(6), copy.deepcopy(trained(3).state_dict())
    resumed = trained(1, seed=9)
    storage = [p.data_ptr() for p in resumed.params]
    resumed.load_state_dict(state)
    assert [p.data_ptr() for p in resumed.params] == storage  # in place: views and optimizer stay bound
    go_on(resumed, range(3, 6))
    for a, b in zip([*whole.params, *whole.target], [*resumed.params, *resumed.target], strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_shape_is_refused():
    net = Trainable(init_mlp((2, 4, 1), 1, streams((0,), "init")), 1e-2)
    wider = Trainable(init_mlp((2, 5, 1), 1, streams((0,), "init")), 1e-2).state_dict()
    with pytest.raises((RuntimeError, ValueError)):
        net.load_state_dict(wider)
    with pytest.raises(ValueError, match="shorter"):
        net.load_state_dict(wider | {"params": net.state_dict()["params"][:2]})


def test_the_state_of_one_seed_does_not_spread_over_a_stack():
    """Shapes (1, ...) would broadcast into (3, ...): every seed would silently go on as a copy of the one."""
    one = Trainable(init_mlp((2, 4, 1), 1, streams((0,), "init")), 1e-2)
    three = Trainable(init_mlp((2, 4, 1), 1, streams((0, 1, 2), "init")), 1e-2)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 4\).*\(3, 2, 4\)"):
        three.load_state_dict(one.state_dict())


@pytest.mark.parametrize("compiling", [False, True], ids=["eager", "as compiled"])
def test_gradients_are_of_the_given_parameters_and_the_rest_is_detached(monkeypatch, compiling):
    """d(x^2 y)/dx = 2 x y; y is not among the parameters; the auxiliary value carries no gradient."""
    x, y = leaf(3.0), leaf(5.0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    grads, aux = gradients(lambda p: ((p[0] ** 2 * y).sum(), {"square": p[0] ** 2}), [x])
    assert [g.item() for g in grads] == [30.0]
    assert aux["square"].item() == 9.0
    assert x.grad is None
    assert y.grad is None
    if not compiling:  # compiled, the outputs of the graph carry none in any case
        assert not aux["square"].requires_grad
