"""Newsvendor policies on a quantile forecast of the next L + 1 periods' demand, less the position.

    q = (Q(tau) - IP)^+
    quantile_nv     tau = p / (p + h)
    returns_nv      the same without ^+: stock may be sent back, which no supplier allows
    fixed_quantile  one learned tau for all
    transformed_nv  tau = sigmoid(f(p / (p + h))), f learned

Q interpolates 19 forecast quantiles (.05 .. .95) linearly and extends them to 0 and 1; it is differentiable
in tau, so that HDPO can learn tau. The forecaster is a net on past demand and calendar, trained by the
pinball loss and then held.

Source: quantile_forecaster.py and neural_networks.py of MatiasAlvo/Neural_inventory_control at commit
4d77c14; Koenker & Bassett 1978 (pinball loss).
Departures: the training of the forecaster is ours (the official repository has weights only); inputs and outputs are in
multiples of the mean demand; lead times need not be consecutive; quantiles are cut at 0 where they are used,
not in training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy
from offrl.envs.inventory.scenarios import Observation, Scenarios
from offrl.envs.inventory.spec import OUTSIDE, Network
from offrl.errors import ConfigError
from offrl.nn.elu_mlp import EluMLP

LEVELS = 19  # quantiles .05, .10, .. .95
WIDTH = 128


def pinball(errors: Tensor, levels: Tensor) -> Tensor:
    """max(tau e, (tau - 1) e) for errors e = demand - quantile: least at the tau-quantile."""
    return torch.maximum(levels * errors, (levels - 1) * errors)


def interpolate(quantiles: Tensor, tau: Tensor) -> Tensor:
    """Q(tau) by straight lines, the first and last of which go on to 0 and 1.

    Args:
        quantiles: at .05, .10, .. .95, (..., 19).
        tau: in [0, 1], (...).
    """
    low = 2 * quantiles[..., :1] - quantiles[..., 1:2]
    high = 2 * quantiles[..., -1:] - quantiles[..., -2:-1]
    knots = torch.cat([low, quantiles, high], -1)
    at = tau * (LEVELS + 1)
    left = at.detach().floor().clamp(0, LEVELS).long().unsqueeze(-1)
    start, end = knots.gather(-1, left).squeeze(-1), knots.gather(-1, left + 1).squeeze(-1)
    return start + (at - left.squeeze(-1)) * (end - start)


class QuantileForecaster(nn.Module):
    """Quantiles of the demand of L + 1 periods for several L, from H past periods and the calendar.

    Args:
        history: H.
        calendar: whether the days from Christmas are an input.
        lead_times: L, increasing.
        scale: mean demand of a period, the unit inside.
        generator: of the first weights.
    """

    def __init__(
        self,
        history: int,
        calendar: bool,
        lead_times: Sequence[int],
        scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.history, self.calendar, self.scale = history, calendar, scale
        self.lead_times = tuple(lead_times)
        self.inputs = max(history + calendar, 1)
        sizes = (self.inputs, WIDTH, WIDTH, LEVELS * len(self.lead_times))
        self.body = EluMLP(sizes, [generator])

    def forward(self, past: Tensor | None, days: float | Tensor | None, rows: int) -> Tensor:
        """Quantiles (rows, leads, 19), units; ``past`` is (rows, H)."""
        like = self.body.layers[0]
        parts = []
        if self.history:
            if past is None:
                raise ConfigError(f"the forecaster needs {self.history} periods of past demand")
            parts.append(past / self.scale)
        if self.calendar:
            days = torch.as_tensor(0.0 if days is None else days, dtype=like.dtype, device=like.device)
            parts.append((days / 100).reshape(-1, 1).expand(rows, 1))
        x = torch.cat(parts, 1) if parts else like.new_ones(rows, 1)
        out: Tensor = self.body(x.T[None])[0].T
        spread = torch.tensor(self.lead_times, device=out.device, dtype=out.dtype)[:, None] + 1
        return out.view(rows, -1, LEVELS) * (self.scale * spread)

    def fit(
        self,
        scenarios: Scenarios,
        generator: torch.Generator,
        *,
        steps: int = 1000,
        rows: int = 1024,
        lr: float = 3e-3,
    ) -> float:
        """Train on random windows, the step size falling to 0; returns the mean loss of the last steps.

        Raises:
            ConfigError: the demand is shorter than the longest protection interval.
        """
        demands, last = scenarios.demands, scenarios.periods - max(self.lead_times) - 1
        if last < 0:
            raise ConfigError(
                f"{scenarios.periods} periods of demand are fewer than the longest lead time and one"
            )
        levels = torch.arange(1, LEVELS + 1, device=demands.device) / (LEVELS + 1)
        self.requires_grad_(True)
        optimizer = torch.optim.Adam(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for _ in range(steps):
            past, days, target = self._windows(scenarios, rows, last, generator)
            errors = target.unsqueeze(-1) - self(past, days, rows)
            loss = pinball(errors, levels).sum(-1).mean() / self.scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        self.requires_grad_(False)
        return float(torch.stack(losses[-100:]).mean())

    def _windows(
        self, scenarios: Scenarios, rows: int, last: int, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Past demand (rows, H), days, and the demand of L + 1 periods (rows, leads), of random paths and periods."""
        demands, history = scenarios.demands, scenarios.history

        def draw(count: int) -> Tensor:
            return torch.randint(count, (rows,), generator=generator, device=generator.device)

        path, store, start = draw(demands.shape[1]), draw(demands.shape[2]), draw(last + 1) + history
        ahead = torch.arange(max(self.lead_times) + 1, device=demands.device)
        future = demands[start[:, None] + ahead, path[:, None], store[:, None]].cumsum(1)
        target = future[:, list(self.lead_times)]
        past = days = None
        if self.history:
            back = torch.arange(-self.history, 0, device=demands.device)
            past = demands[start[:, None] + back, path[:, None], store[:, None]]
        if self.calendar and scenarios.calendar:
            days = torch.tensor(scenarios.calendar, device=demands.device)[start]
        return past, days, target


class _Newsvendor(InventoryPolicy):
    """Stores supplied from outside alone."""

    returns = False

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        lead_times: tuple[int, ...] = (), **options: Any,
    ) -> None:  # fmt: skip
        lead_times = lead_times or facts.lead_times or tuple(sorted(set(network.lead_times)))
        super().__init__(network, facts, generators, lead_times=lead_times, **options)
        if network.upstream or len(network.edges) != len(network.nodes):
            raise ConfigError(
                f"policy {self.name} is for stores that are each supplied from {OUTSIDE!r} alone"
            )
        scale = max(abs(sum(facts.means)) / len(facts.means), 1e-6)
        fresh = torch.Generator(generators[0].device).manual_seed(0)
        self.forecaster = QuantileForecaster(facts.history, facts.calendar, lead_times, scale, fresh)
        self.forecaster.requires_grad_(False)
        places = torch.zeros(max(lead_times) + 1, dtype=torch.int64, device=self.device)
        places[list(lead_times)] = torch.arange(len(lead_times), device=self.device)
        self.register_buffer("places", places, persistent=False)

    places: Tensor

    def prepare(self, scenarios: Scenarios) -> None:
        """Train the forecaster; the same one for every seed."""
        device = scenarios.initial.device
        self.forecaster.fit(scenarios, torch.Generator(device).manual_seed(0))

    def ratio(self, seen: Observation) -> Tensor:
        """The critical ratio p / (p + h), (B, S)."""
        p, h = seen.parameters.underage, seen.parameters.holding
        return (p / (p + h)).expand(len(seen.stock), -1)

    def logits(self, seen: Observation) -> Tensor:
        """Of tau, (B, S)."""
        return torch.logit(self.ratio(seen))

    def quantile(self, tau: Tensor, seen: Observation) -> Tensor:
        """Q(tau) of each store's L + 1 periods, (B, S)."""
        rows, stores = tau.shape
        leads = self.forecaster.lead_times
        if not bool(torch.isin(seen.parameters.lead_times, torch.tensor(leads, device=self.device)).all()):
            raise ConfigError(
                f"policy {self.name} forecasts for lead times {leads} only, and the scenarios have others"
            )
        past = seen.past_demand.flatten(0, 1) if seen.past_demand is not None else None
        found = self.forecaster(past, seen.days_from_christmas, rows * stores).view(rows, stores, -1, LEVELS)
        place = self.places[seen.parameters.lead_times].expand(rows, -1)[..., None, None]
        own = found.gather(2, place.expand(-1, -1, 1, LEVELS)).squeeze(2)
        return interpolate(own.clamp(min=0), tau)

    def orders(self, logits: Tensor, seen: Observation) -> Tensor:
        """Q(tau) - IP, cut at 0."""
        orders = self.quantile(logits.sigmoid(), seen) - seen.stock.sum(-1)
        return orders if self.returns else orders.clamp(min=0)


class QuantileNewsvendor(_Newsvendor):
    """tau = p / (p + h)."""

    name, trainable = "quantile_nv", False


class ReturnsNewsvendor(_Newsvendor):
    """The same, and stock may be sent back."""

    name, trainable, admissible, returns = "returns_nv", False, False, True


class FixedQuantile(_Newsvendor):
    """One learned tau, at first the median."""

    name = "fixed_quantile"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.free = nn.Parameter(torch.zeros(self.copies, 1, device=self.device))

    def logits(self, seen: Observation) -> Tensor:
        """The free number."""
        return self.by_seed(self.free, seen).expand(-1, len(self.network.nodes))


class TransformedNewsvendor(_Newsvendor):
    """tau = sigmoid(f(p / (p + h)))."""

    name = "transformed_nv"

    def __init__(
        self, network: Network, facts: DemandFacts, generators: Sequence[torch.Generator],
        lead_times: tuple[int, ...] = (), hidden: tuple[int, ...] = (32, 32),
    ) -> None:  # fmt: skip
        super().__init__(network, facts, generators, lead_times, hidden=hidden)
        self.body = EluMLP((1, *hidden, 1), generators)

    def logits(self, seen: Observation) -> Tensor:
        """F of the ratio."""
        ratio = self.split(self.ratio(seen).to(seen.stock.dtype)).flatten(1)
        out: Tensor = self.body(ratio[:, None])
        return out.reshape(-1, len(self.network.nodes))
