"""Loss, gradients and auxiliary values in one call, the same code eager and compiled."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from offrl.nn.mlp import Params

Function = TypeVar("Function", bound=Callable[..., Any])
Loss = Callable[[Params], tuple[Tensor, dict[str, Tensor]]]
WARM_UP = 3  # calls before a capture, in which libraries make their handles and workspaces


def gradients(loss: Loss, params: Params) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Gradients of ``loss(params)`` for exactly ``params``, and the loss's auxiliary values, detached.

    Args:
        loss: maps parameters to (scalar, auxiliary tensors). Per-seed losses are *summed* into the scalar,
            never averaged, so that each seed's gradient is its own.
        params: tensors that require gradients.
    """
    value, aux = loss(params)
    return torch.autograd.grad(value, params), {name: x.detach() for name, x in aux.items()}


def compiled(function: Function) -> Function:
    """A faster version of a function that calls ``gradients``, for fixed shapes.

    On a CPU it is ``torch.compile``'s, one graph. On a GPU it is a captured CUDA graph of the eager code: launching
    its many small kernels, not running them, is what takes time there. The graph keeps the Python numbers of its first
    call.
    """
    made: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not made:
            made.append(Graphed(function) if any(x.is_cuda for x in tensors(args)) else _compiled(function))
        return made[0](*args)

    return cast(Function, call)


def _compiled(function: Function) -> Function:
    torch._dynamo.config.trace_autograd_ops = True
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=False))


class Graphed:
    """A function replayed as CUDA graphs, one for each set of shapes among its arguments' tensors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """The function's values, copies that the next call does not change."""
        given = [x.detach() for x in tensors(args)]
        key = tuple((x.shape, x.dtype, x.device) for x in given)
        if key not in self.graphs:
            self.graphs[key] = self._capture(args, given)
        graph, inputs, outputs = self.graphs[key]
        if given:
            torch._foreach_copy_(inputs, given)
        graph.replay()
        kept = tensors(outputs)
        copies = [torch.empty_like(x) for x in kept]
        torch._foreach_copy_(copies, kept)
        return replaced(outputs, iter(copies))

    def _capture(self, args: Any, given: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        inputs = [x.clone() for x in given]
        static = replaced(args, iter(inputs))
        torch.clear_autocast_cache()  # what it holds would be read by the graph after it is gone
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(*static)
        torch.cuda.current_stream().wait_stream(side)
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.function(*static)
        torch.clear_autocast_cache()
        return graph, inputs, outputs


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return tensors([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, Mapping):
        return tensors(list(value.values()))
    return [x for part in value for x in tensors(part)] if isinstance(value, tuple | list) else []


def replaced(value: Any, others: Iterator[Tensor]) -> Any:
    """``value`` with its tensors, in the order of ``tensors``, replaced by ``others``."""
    if isinstance(value, Tensor):
        return next(others)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: replaced(getattr(value, n), others) for n in names})
    if isinstance(value, Mapping):
        return {name: replaced(part, others) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [replaced(part, others) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
