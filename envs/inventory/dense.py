"""Dense nets: all pipelines in, all orders out.

    mlp_one_store    a = softplus(f(x) + 1)
    mlp_serial       a = sigmoid(f) stock of the supplier; from outside sigmoid(f) bound
    mlp_network      softmax(f) stock of the supplier, with a logit 1 for what stays; from outside sigmoid(f) bound
    data_driven      relu(f) of pipelines, past demand, costs, lead times; shipments by the proportional layer
    symmetry_aware   c = sigmoid(f(all)); store: proportional of softplus(g(own row, c));
                     warehouse: sigmoid(k(own row, c)) bound

bound = 4 x the sum of the stores' mean demand. f, g, k are ELU perceptrons. Only columns in use are fed, raw unless
``normalize``, which divides stock and demand by the mean demand of a store.

Source: arXiv:2306.11246; neural_networks.py of MatiasAlvo/Neural_inventory_control at commit 4d77c14
(symmetry_aware: parent of 6274316).
Departures: outputs are lanes that exist, not a table of stores by warehouses; the serial net's input keeps its gradient
(the official one detaches it); data_driven ships from stock on hand alone (the official one counts goods
under way), sees the days from Christmas once, and the lead times of lanes that exist.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.scenarios import Observation
from offrl.envs.inventory.shipping import Shipping
from offrl.envs.inventory.spec import Network
from offrl.errors import ConfigError
from offrl.nn.elu_mlp import EluMLP


class _Dense(InventoryPolicy):
    """Flat inputs and the scale of normalization."""

    columns: Tensor

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], **options: Any
    ) -> None:
        super().__init__(network, facts, generators, **options)
        width, varies = network.width, any(edge.receipts for edge in network.edges)
        # where deliveries vary, all that is under way stands in the last column, beyond the longest lead time
        self.widths = (width,) * len(network.nodes) if varies else network.widths
        used = [n * width + k for n, wide in enumerate(self.widths) for k in range(wide)]
        self.all_used = len(used) == len(network.nodes) * width
        self.register_buffer("columns", torch.tensor(used, device=self.device), persistent=False)
        self.shipping = Shipping(network, self.device)
        self.bound = 4.0 * sum(facts.means)
        self.unit = sum(facts.means) / len(facts.means) if options.get("normalize") else 1.0
        if not self.unit > 0:
            raise ConfigError(f"policy {self.name}: normalize needs a positive mean demand")

    def flat(self, seen: Observation) -> Tensor:
        """The used columns of all pipelines, (B, F)."""
        flat = seen.stock.flatten(1)
        flat = flat if self.all_used else flat[:, self.columns]
        return flat if self.unit == 1.0 else flat / self.unit

    def net(self, sizes: Sequence[int], generators: Sequence[torch.Generator], **more: Any) -> EluMLP:
        """One of the policy's networks."""
        if any(size < 1 for size in sizes):
            raise ConfigError(f"policy {self.name}: hidden must be sizes of 1 or more, got {sizes[1:-1]}")
        return EluMLP(sizes, generators, **more)

    def through(self, net: EluMLP, x: Tensor) -> Tensor:
        """(B, F) rows through the net of their seed, (B, out)."""
        out: Tensor = net(self.split(x).transpose(1, 2))
        if out.shape[1] == 1:
            return out.reshape(-1, 1)
        return out.transpose(1, 2).flatten(0, 1)

    def on_hand(self, seen: Observation) -> Tensor:
        """(B, U)."""
        return seen.stock[:, : self.network.upstream, 0]


class OneStoreMLP(_Dense):
    """The pipeline of one store -> its order."""

    name = "mlp_one_store"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (32, 32, 32), normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, hidden=hidden, normalize=normalize)
        if len(network.nodes) != 1:
            raise ConfigError(
                f"policy {self.name} is for one store, {network.name} has {len(network.nodes)} nodes"
            )
        self.body = self.net((len(self.columns), *hidden, 1), generators)

    def logits(self, seen: Observation) -> Tensor:
        """F(x) + 1, (B, 1)."""
        return self.through(self.body, self.flat(seen)) + 1.0

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Softplus."""
        return F.softplus(logits) if self.unit == 1.0 else F.softplus(logits) * self.unit


class SerialMLP(_Dense):
    """All pipelines of a serial system -> a share of the supplier's stock for each stage."""

    name = "mlp_serial"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (32, 32), normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, hidden=hidden, normalize=normalize)
        chain = sorted(network.sources) == sorted(range(1, len(network.nodes) + 1)) or network.sources == (
            *range(network.internal), len(network.nodes),
        )  # fmt: skip
        if not chain or len(network.edges) != len(network.nodes) or network.stores != 1:
            raise ConfigError(f"policy {self.name} is for a chain of nodes, {network.name} is none")
        self.body = self.net((len(self.columns), *hidden, len(network.edges)), generators)

    def logits(self, seen: Observation) -> Tensor:
        """F(x), (B, E)."""
        return self.through(self.body, self.flat(seen))

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Sigmoid shares."""
        inside = self.network.internal
        bound = self.bound * logits[:, inside:].sigmoid()
        return torch.cat([self.shipping.sigmoid(self.on_hand(seen), logits[:, :inside]), bound], 1)


class NetworkMLP(_Dense):
    """All pipelines of warehouses and stores -> softmax shares of each warehouse's stock, and orders from outside."""

    name = "mlp_network"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (512, 512, 512), normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, hidden=hidden, normalize=normalize)
        self.body = self.net((len(self.columns), *hidden, len(network.edges)), generators)

    def logits(self, seen: Observation) -> Tensor:
        """F(x), (B, E)."""
        return self.through(self.body, self.flat(seen))

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Softmax shares, and sigmoids from outside."""
        inside = self.network.internal
        bound = self.bound * logits[:, inside:].sigmoid()
        if not inside:
            return bound
        return torch.cat([self.shipping.softmax(self.on_hand(seen), logits[:, :inside]), bound], 1)


class DataDrivenMLP(_Dense):
    """Pipelines, past demand, calendar, costs and lead times -> orders; the publication's end-to-end policy."""

    name = "data_driven"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        hidden: tuple[int, ...] = (64, 64), normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, hidden=hidden, normalize=normalize)
        self.lanes_to_stores = sum(target >= network.upstream for target in network.targets)
        stores = network.stores
        features = len(self.columns) + stores * (facts.history + 2) + facts.calendar + self.lanes_to_stores
        self.body = self.net((features, *hidden, len(network.edges)), generators, bias=1.0)

    def logits(self, seen: Observation) -> Tensor:
        """F(features), (B, E)."""
        rows, first, p = len(seen.stock), self.network.upstream, seen.parameters
        parts = [self.flat(seen)]
        if self.facts.history:
            if seen.past_demand is None:
                raise ConfigError(
                    f"policy {self.name} was made for {self.facts.history} periods of past demand"
                )
            parts.append(seen.past_demand.flatten(1) / self.unit)
        static = [p.holding[..., first:], p.underage[..., first:], self._to_stores(p.lead_times)]
        parts += [x.to(parts[0].dtype).expand(rows, -1) for x in static]
        if self.facts.calendar:
            days = (seen.days_from_christmas or 0.0) / (100.0 if self.unit != 1.0 else 1.0)
            parts.append(parts[0].new_full((rows, 1), days))
        return self.through(self.body, torch.cat(parts, 1))

    def _to_stores(self, lead_times: Tensor) -> Tensor:
        keep = [e for e, target in enumerate(self.network.targets) if target >= self.network.upstream]
        return lead_times[..., keep]

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Relu, then proportional."""
        wishes = logits.relu() if self.unit == 1.0 else logits.relu() * self.unit
        return self.shipping.proportional(self.on_hand(seen), wishes)


class SymmetryAware(_Dense):
    """One warehouse: a context net reads everything, one net for all stores reads a store's row and the context.

    Not equivariant: the context sees stores by their place.
    """

    name = "symmetry_aware"
    statics: Tensor

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        context: int = 256, normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, context=context, normalize=normalize)
        if (
            network.upstream != 1
            or network.internal != network.stores
            or len(network.edges) != network.stores + 1
        ):
            raise ConfigError(f"policy {self.name} is for one warehouse that alone supplies every store")
        self.wide = max(self.widths[1:])
        self.context = self.net((len(self.columns), 256, context), generators)
        self.store = self.net((self.wide + 4 + context, 32, 32, 1), generators)
        self.warehouse = self.net((self.widths[0] + context, 16, 16, 1), generators)
        own = torch.tensor([facts.means, facts.stds]).T / self.unit
        self.register_buffer("statics", own.to(self.device), persistent=False)

    def logits(self, seen: Observation) -> Tensor:
        """G of every store, then k of the warehouse, (B, S + 1)."""
        rows, stores, p = len(seen.stock), self.network.stores, seen.parameters
        flat = self.flat(seen)
        context = self.through(self.context, flat).sigmoid()
        static = torch.stack([p.underage[..., 1:], p.lead_times[..., :stores].to(flat.dtype)], -1)
        parts = [
            seen.stock[:, 1:, : self.wide] / self.unit,
            self.statics.to(flat.dtype).expand(rows, -1, -1),
            static.expand(rows, -1, -1),
            context[:, None].expand(-1, stores, -1),
        ]
        shops = self.through(self.store, torch.cat(parts, -1).flatten(0, 1)).view(rows, stores)
        own = seen.stock[:, 0, : self.widths[0]] / self.unit
        return torch.cat([shops, self.through(self.warehouse, torch.cat([own, context], 1))], 1)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Proportional shares of softplus wishes, and a sigmoid from outside."""
        wishes = F.softplus(logits[:, :-1]) * self.unit
        shipped = self.shipping.proportional(self.on_hand(seen), wishes)
        return torch.cat([shipped, self.bound * logits[:, -1:].sigmoid()], 1)
