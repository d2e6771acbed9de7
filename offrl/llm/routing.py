"""Which experts the routers of a mixture choose: recorded while a model reads tokens, and forced on it later.

Only the choice is replaced. The chosen experts' weights are the current router's probabilities, normalized over them as
usual, so that routers keep their gradient.

Source: routing replay as in volcengine/verl; arXiv:2507.18071, arXiv:2512.01374.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROUTERS = ("MixtralTopKRouter",)
"""Classes of transformers whose output is (logits, weights, experts), softmax first."""


def routers(model: nn.Module) -> list[nn.Module]:
    """Those of a model, layer by layer; none of a dense one."""
    return [module for module in model.modules() if type(module).__name__ in ROUTERS]


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that grows by (tokens, layers, k) expert ids, int64, with each pass of the model."""
    found: list[Tensor] = []
    layers: list[Tensor] = []
    modules = routers(model)

    def note(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        layers.append(output[2])
        if len(layers) == len(modules):
            found.append(torch.stack(layers, dim=1))
            layers.clear()

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        yield found


@contextmanager
def forced(model: nn.Module, passes: Sequence[Tensor]) -> Iterator[None]:
    """Each pass of the model takes the experts of the next one of ``passes``, as ``recording`` gave them."""
    calls = [0] * len(modules := routers(model))

    def hook(layer: int) -> Any:
        def replace(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
            experts = passes[calls[layer]][:, layer]
            calls[layer] += 1
            weights = output[0].float().softmax(dim=-1).gather(1, experts)
            return output[0], weights / weights.sum(dim=-1, keepdim=True), experts

        return replace

    with ExitStack() as hooks:
        for layer, module in enumerate(modules):
            hooks.callback(module.register_forward_hook(hook(layer)).remove)
        yield
