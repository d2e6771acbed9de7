"""Gradient functions: their arguments taken apart and put together; CUDA graphs."""

from typing import NamedTuple

import pytest
import torch

from offrl.data.batch import Batch
from offrl.nn.gradients import Graphed, compiled, gradients, replaced, tensors


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def arguments(fill: float = 0.0):
    x = [torch.full((2, 3), fill + i) for i in range(9)]
    batch = Batch(*x[:6])
    return (batch, [x[6]], Pair(x[7], x[8]), {"scale": 2.0}, None)


def test_tensors_come_out_and_go_in_in_one_order():
    value = arguments()
    found = tensors(value)
    assert [float(x[0, 0]) for x in found] == list(range(9))
    again = replaced(value, iter([x + 10.0 for x in found]))
    assert [float(x[0, 0]) for x in tensors(again)] == [10.0 + i for i in range(9)]
    assert [type(part) for part in again] == [Batch, list, Pair, dict, type(None)]
    assert again[3] == {"scale": 2.0}


def test_on_a_cpu_it_is_compiled_once_and_gives_the_same(monkeypatch):
    calls = []

    def compile_(function, **options):
        calls.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    w = torch.tensor([2.0], requires_grad=True)
    fast = compiled(lambda x: gradients(lambda params: ((params[0] * x).sum(), {"x": x}), [w]))
    for value in (3.0, 4.0):
        (grad,), aux = fast(torch.tensor([value]))
        assert float(grad) == float(aux["x"]) == value
    assert calls == [{"fullgraph": True, "dynamic": False}]


class Recomputed(Graphed):
    """Without a GPU: a replay computes anew from the captured inputs into the captured outputs."""

    def _capture(self, args, given):
        inputs = [x.clone() for x in given]
        static = replaced(args, iter(inputs))
        outputs = self.function(*static)

        class Graph:
            def replay(graph):  # noqa: N805
                torch._foreach_copy_(tensors(outputs), tensors(self.function(*static)))

        return Graph(), inputs, outputs


def test_a_replay_reads_the_call_s_values_and_leaves_earlier_ones_alone():
    def function(batch, parts, draws, settings, nothing):
        return (settings["scale"] * batch.observations + parts[0],), {"second": draws.second}

    graphed, kept = Recomputed(function), []
    for fill in (0.0, 5.0, 7.0):
        value = arguments(fill)
        found = graphed(*value)
        found[1]["mine"] = torch.zeros(1)  # a caller may add to what it was given
        kept.append((found, function(*value)))
    for ((found,), more), ((wanted,), aux) in kept:
        assert torch.equal(found, wanted)
        assert torch.equal(more["second"], aux["second"])
    assert len(graphed.graphs) == 1
    smaller = replaced(arguments(), iter([x[:1] for x in tensors(arguments())]))
    assert graphed(*smaller)[0][0].shape == (1, 3)
    assert len(graphed.graphs) == 2


@pytest.mark.gpu
def test_a_graph_gives_what_eager_code_gives():
    weights = torch.randn(3, 4, device="cuda", requires_grad=True)

    def function(batch, parts, draws, settings, nothing):
        def loss(params):
            out = (batch.observations + parts[0] + draws.second) @ params[0]
            return settings["scale"] * out.square().sum(), {"mean": out.mean()}

        return gradients(loss, [weights])

    def on_the_gpu(fill, rows):
        value = arguments(fill)
        return replaced(value, iter([x[:rows].cuda() * torch.randn(()) for x in tensors(value)]))

    graphed, kept = Graphed(function), []
    for fill, rows in ((0.0, 2), (1.0, 2), (2.0, 1), (3.0, 2)):
        args = on_the_gpu(fill, rows)
        with torch.no_grad():
            weights.mul_(0.9)  # parameters change in place between calls
        (wanted,), aux = function(*args)
        (found,), more = graphed(*args)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(more["mean"], aux["mean"])
        kept.append((found, wanted))
    torch.testing.assert_close(*zip(*kept, strict=True))  # later calls leave earlier values alone
    assert len(graphed.graphs) == 2
