"""The one contract of inventory policies, the table of them, their files, and whole-unit orders.

    logits = policy.logits(seen)            what the policy wants, unbounded, (B, Z)
    orders = policy.orders(logits, seen)    the feasibility layer, (B, E), in the network's order of edges

``policy(seen)`` is the two in a row. Noise on the logits makes a policy stochastic and leaves every order feasible. All
trainable parameters have a leading axis of S seeds; the rows of an observation are those of seed 0, then of
seed 1 and so on, in equal parts, and each part meets the parameters of its own seed. S = 1 is the plain policy.
"""

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.protocol import AnySetting
from offrl.envs.inventory.scenarios import Observation, Policy, Scenarios
from offrl.envs.inventory.spec import Edge, Network, Node
from offrl.errors import ConfigError, PolicyError
from offrl.files import atomic_write_bytes, atomic_write_json

FORMAT = 1
HERE = "offrl.envs.inventory"
POLICIES = {  # name -> class, what it is; oracles and inadmissible ones say so
    "base_stock": ("classical.BaseStock", "order up to a level, one a node"),
    "capped_base_stock": ("classical.CappedBaseStock", "order up to a level, at most a cap"),
    "echelon_base_stock": ("classical.EchelonBaseStock", "levels of the stock at a node and downstream of it"),
    "constant_order": ("classical.ConstantOrder", "the same order every period"),
    "s_S": ("classical.MinMax", "order up to S when the position is at or below s"),
    "optimal": ("classical.OrderTable", "one store, lost sales, Poisson demand: the dynamic program's; not trained"),
    "myopic_2": ("classical.Myopic2", "one store, lost sales: best for the first two periods it changes; not trained"),
    "item_levels": ("levels.ItemLevels", "one small net sets the levels of all items and places from their features"),
    "projected_level": ("projected.ProjectedLevel", "one store, lost sales: a level of what is expected at arrival"),
    "just_in_time": ("classical.JustInTime", "orders what will be sold; an oracle that reads the future"),
    "quantile_nv": ("quantiles.QuantileNewsvendor", "forecast quantile p / (p + h); not trained further"),
    "returns_nv": ("quantiles.ReturnsNewsvendor", "the same, and may send stock back: not admissible"),
    "fixed_quantile": ("quantiles.FixedQuantile", "one learned forecast quantile"),
    "transformed_nv": ("quantiles.TransformedNewsvendor", "forecast quantile learned from p / (p + h)"),
    "mlp_one_store": ("dense.OneStoreMLP", "a net on the pipeline of one store"),
    "mlp_serial": ("dense.SerialMLP", "a net on all pipelines of a serial system"),
    "mlp_network": ("dense.NetworkMLP", "a net on all pipelines of warehouses and stores"),
    "data_driven": ("dense.DataDrivenMLP", "a net on pipelines, past demand and costs"),
    "symmetry_aware": ("dense.SymmetryAware", "one warehouse: a context net, one net for every store"),
    "gnn": ("gnn.GNN", "a graph network on nodes and lanes, of any number"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemandFacts:
    """What a policy may know of the demand before it starts."""

    means: tuple[float, ...]
    """Per store, units a period."""
    stds: tuple[float, ...]
    history: int = 0
    """Periods of past demand in every observation."""
    calendar: bool = False
    """Whether observations know the days from Christmas."""
    season: tuple[tuple[float, ...], ...] = ()
    """Factors of each store's mean, from period 0 on, repeated; empty: none."""
    lead_times: tuple[int, ...] = ()
    """All that occur, where scenarios differ in them; empty: the network's own."""

    @property
    def stationary(self) -> bool:
        """Whether demand is the same in all periods."""
        return all(set(factors) == {1.0} for factors in self.season)

    @classmethod
    def of(cls, setting: AnySetting, scenarios: Scenarios) -> Self:
        """The setting's own means and spreads where it states both, else those of the scenarios."""
        demand = getattr(setting, "demand", None)
        means, stds = getattr(demand, "means", ()), getattr(demand, "stds", None)
        own = getattr(demand, "seasons", None)  # of each store; else one of all
        season = () if own is not None else getattr(demand, "season", ())
        season = season if any(season) and set(season) != {1.0} else ()
        if isinstance(demand, Poisson):
            stds = tuple(mean**0.5 for mean in means)
        elif stds is None:
            means = tuple(scenarios.demands.mean((0, 1), dtype=torch.float64).tolist())
            stds = tuple(scenarios.demands.double().std((0, 1)).tolist())
            # the means have its height
            season = tuple(factor * len(season) / sum(season) for factor in season)
        calendar = scenarios.calendar is not None
        known = getattr(setting, "parameters", scenarios.parameters)  # of all series, not only these
        times = known.lead_times
        return cls(
            means=tuple(map(float, means)), stds=tuple(map(float, stds)),
            history=scenarios.history, calendar=calendar,
            season=(season,) * len(means) * bool(season) if own is None else own,
            lead_times=tuple(times.unique().tolist()) if times.ndim > 1 else (),
        )  # fmt: skip


class InventoryPolicy(nn.Module):
    """Base of all policies.

    Args:
        network: what it controls.
        facts: of the demand.
        generators: one a seed; draw the initial parameters, on the device where the policy lives.
    """

    name: ClassVar[str] = ""
    admissible: ClassVar[bool] = True
    """False: it reads the future or places orders that cannot be carried out; a reference only."""
    trainable: ClassVar[bool] = True

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], **options: Any
    ) -> None:
        super().__init__()
        self.network, self.facts, self.options = network, facts, options
        self.copies, self.device = len(generators), generators[0].device

    def logits(self, seen: Observation) -> Tensor:
        """What is wanted, (B, Z)."""
        raise NotImplementedError

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Feasible orders, (B, E)."""
        raise NotImplementedError

    def forward(self, seen: Observation) -> Tensor:
        """Orders, (B, E)."""
        return self.orders(self.logits(seen), seen)

    def split(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (S, B / S, ...): each seed's part."""
        parts: Tensor = rows.unflatten(0, (self.copies, -1))
        return parts

    def by_seed(self, parameter: Tensor, seen: Observation) -> Tensor:
        """(S, Z) -> (B, Z): each seed's values on all its rows."""
        rows = len(seen.stock) // self.copies
        return parameter[:, None].expand(-1, rows, -1).flatten(0, 1)

    def single(self, seed: int) -> Self:
        """The policy of one seed, a copy."""
        other = copy.deepcopy(self)
        other.copies = 1
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data[seed : seed + 1].clone()
        return other

    def moved(self, network: Network, facts: DemandFacts) -> "InventoryPolicy":
        """The same weights on another network, for policies that can (gnn).

        Raises:
            ConfigError: this one cannot, or the networks differ in what its weights are for.
        """
        raise ConfigError(
            f"policy {self.name} was made for {self.network.name} and fits no other network than that"
        )

    def prepare(self, scenarios: Scenarios) -> None:
        """What is fitted on training scenarios before anything else, and then held; nothing by default."""


def make_policy(
    name: str, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator], **options: Any
) -> InventoryPolicy:
    """A policy by name.

    Args:
        name: a key of ``POLICIES``.
        network: what it controls.
        facts: of the demand.
        generators: one a seed.
        options: of that policy, such as ``hidden=(64, 64)``.

    Raises:
        ConfigError: an unknown name or option, or a network that the policy does not fit.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown policy {name!r}; there are {', '.join(POLICIES)}")
    module, _, kind = POLICIES[name][0].partition(".")
    made = getattr(importlib.import_module(f"{HERE}.{module}"), kind)
    try:
        policy: InventoryPolicy = made(network, facts, generators, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"policy {name}: {str(error).rpartition('__() ')[2]}") from None
    return policy.to(generators[0].device)


def save_policy(policy: InventoryPolicy, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write ``policy.json`` (kind, network, facts, options, ``extra``) and ``policy.safetensors``; one seed."""
    if policy.copies != 1:
        raise PolicyError(f"the policy holds {policy.copies} seeds; save policy.single(k) of each")
    state = {key: value.detach().cpu().contiguous() for key, value in policy.state_dict().items()}
    atomic_write_bytes(folder / "policy.safetensors", safetensors.torch.save(state))
    atomic_write_json(
        folder / "policy.json",
        {
            "format": FORMAT, "kind": "inventory", "policy": policy.name, "options": policy.options,
            "facts": asdict(policy.facts), "network": network_to_json(policy.network), "extra": extra or {},
        },
    )  # fmt: skip


def load_policy(folder: Path) -> InventoryPolicy:
    """The policy that ``save_policy`` wrote.

    Raises:
        PolicyError: the files are missing, damaged, or not of an inventory policy.
    """
    path = folder / "policy.json"
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path} cannot be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") != "inventory" or facts.get("format") != FORMAT:
        raise PolicyError(f"{path} does not describe an inventory policy of format {FORMAT}")
    try:
        known: dict[str, Any] = {key: _tuples(v) for key, v in facts["facts"].items()}
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in facts["options"].items()}
        network = network_from_json(facts["network"])
        made = make_policy(
            facts["policy"], network, DemandFacts(**known), [torch.Generator().manual_seed(0)], **options
        )
        made.load_state_dict(safetensors.torch.load_file(folder / "policy.safetensors"))
    except (
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
        ConfigError,
        safetensors.SafetensorError,
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise PolicyError(
            f"{path} is damaged or from another version: {type(error).__name__}: {first}"
        ) from None
    return made  # fmt: skip


def at_home(policy: InventoryPolicy, setting: AnySetting) -> InventoryPolicy:
    """The policy for a setting: one that can move takes its network and its demand, others must fit.

    Raises:
        ConfigError: the policy was made for another network and cannot move.
    """
    ours, theirs = policy.network, setting.network
    same = (ours.sources, ours.targets, ours.widths) == (theirs.sources, theirs.targets, theirs.widths)
    if same and type(policy).moved is InventoryPolicy.moved:
        return policy
    return policy.moved(theirs, DemandFacts.of(setting, setting.draw("train")))


def network_to_json(network: Network) -> dict[str, Any]:
    """A network as JSON values; what has its default is left out."""

    def plain(thing: Any) -> dict[str, Any]:
        named = ((f.name, getattr(thing, f.name), f.default) for f in fields(thing))
        return {name: value for name, value, default in named if value != default}

    return plain(network) | {
        "nodes": [plain(node) for node in network.nodes],
        "edges": [plain(edge) for edge in network.edges],
    }


def network_from_json(values: dict[str, Any]) -> Network:
    """What ``network_to_json`` wrote."""
    rest: dict[str, Any] = {k: _tuples(v) for k, v in values.items() if k not in ("nodes", "edges")}
    nodes = tuple(Node(**node) for node in values["nodes"])
    edges = tuple(Edge(**{k: _tuples(v) for k, v in edge.items()}) for edge in values["edges"])
    return Network(nodes=nodes, edges=edges, **rest)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def rounded(policy: Policy, network: Network, how: str = "feasible") -> Policy:
    """The policy with whole-unit orders.

    Args:
        policy: any.
        network: that it controls.
        how: ``nearest`` rounds each order, half to even, and can ask a supplier for more than it has;
        ``feasible`` rounds
            so, and where that exceeds the whole units on hand, cuts to floors and gives what is left to the largest
            remainders.

    Raises:
        ConfigError: another ``how``.
    """
    if how == "nearest":
        return lambda seen: policy(seen).round()
    if how != "feasible":
        raise ConfigError(f"rounding must be nearest or feasible, got {how!r}")
    internal, sources = network.internal, network.sources

    def feasible(seen: Observation) -> Tensor:
        wanted = policy(seen)
        whole = wanted.round()
        for node in range(network.upstream):
            lanes = [e for e in range(internal) if sources[e] == node]
            on_hand = (seen.stock[:, node, 0] + 1e-4).floor()
            whole[:, lanes] = _apportioned(wanted[:, lanes], on_hand, network.nodes[node].holds)
        return whole

    return feasible


def _apportioned(wanted: Tensor, on_hand: Tensor, holds: bool) -> Tensor:
    """Whole orders of at most ``on_hand`` in all (exactly that many where the node may not hold), (B, D)."""
    nearest = wanted.round()
    over = nearest.sum(1) > on_hand if holds else torch.ones_like(on_hand, dtype=torch.bool)
    target = torch.minimum(wanted.sum(1).round(), on_hand) if holds else on_hand
    floors = (wanted + 1e-4).floor()
    left = (target - floors.sum(1)).clamp(min=0)
    rank = (wanted - floors).argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return torch.where(over[:, None], floors + (rank < left[:, None]), nearest)
