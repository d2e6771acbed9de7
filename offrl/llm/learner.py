"""One step of training: sample a batch of groups, score it, update. Everything that varies comes from the method."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.estimators.advantages import gae, next_values, rewards_at_end
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.group_losses import GroupEstimator
from offrl.estimators.groups import Groups, whole_groups
from offrl.estimators.rollouts import Counts, count
from offrl.llm.contexts import score_segments
from offrl.llm.engine import Engine
from offrl.llm.episodes import environment_of, respond
from offrl.llm.method import Companion, LossSettings, Method, TextRollouts, watches
from offrl.llm.models import FORBIDDEN
from offrl.llm.options import LLMOptions
from offrl.llm.parallel import Ranks
from offrl.llm.pretrained import folder_of
from offrl.llm.prompts.parts import PromptParts
from offrl.llm.rollouts import (
    component_names,
    first_groups,
    group_shares,
    joined,
    moved,
    rollouts,
)
from offrl.llm.rollouts import demonstrations as demonstrations_of
from offrl.llm.score import Scores, score
from offrl.llm.served import Served
from offrl.llm.tasks.task import Task
from offrl.llm.text import Prompts, Responses
from offrl.training.seeding import stream

FURTHER = 1_000_000
"""Where the numbers of groups beside the batch's begin, in each process."""
STREAMS = ("sampling", "minibatches", "demonstrations", "method")
SAMPLED = ("reward", "success", "zero_variance", "all_right", "all_wrong", "length")
UPDATED = (
    "loss",
    "surrogate",
    "entropy",
    "grad_norm",
    "clip_fraction",
    "approx_kl",
    "log_ratio",
    "engine_gap",
    "kl",
)


@dataclass
class Shown:
    """Some of the last batch, for people."""

    prompts: list[str]
    responses: list[str]
    rewards: list[float]


class Learner:
    """A method at work on a task.

    Args:
        method: what is optimised.
        settings: of the method.
        task: prompts and rewards.
        policy: the model, trained in place.
        options: how to sample and update.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        method: Method,
        settings: LossSettings,
        task: Task,
        policy: Any,
        options: LLMOptions,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        if options.prompts % self.ranks.size:
            raise ConfigError(
                f"{self.ranks.size} processes cannot share out {options.prompts} prompts evenly"
            )
        self.method, self.settings, self.task, self.policy = method, settings, task, policy
        self.options = options
        self.estimator = method.estimator(settings, task.max_response)
        self.device = policy.bias.device
        frozen = {id(p): p for p in policy.parameters() if not p.requires_grad}  # shared, not copied
        self.reference = copy.deepcopy(policy, frozen) if settings.kl != 0.0 or method.reference else None
        self.engine = Engine(policy, options.delay, options.engine, self._server())
        if method.answers and not hasattr(task, "final_answers"):
            raise ConfigError(f"task {task.name} does not say what the final answer of a response is")
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.critic: nn.Linear | None = None
        if method.critic(settings) if callable(method.critic) else method.critic:
            self.critic = nn.Linear(policy.head.shape[1], 1).to(policy.head)
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
            self.parameters += list(self.critic.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=options.lr, weight_decay=0.0)
        self.streams = {name: stream(options.seed, name) for name in STREAMS}
        own = f"sampling {self.ranks.rank}" if self.ranks.rank else "sampling"
        self.streams["sampling"] = stream(options.seed, own, self.device)
        self.steps, self.updates, self.rollouts, self.tokens = 0, 0, 0, 0
        self.companion = (method.companion or Companion)(settings, self)
        self.prompting = PromptParts(task, options, policy)
        if self.ranks.size > 1 and options.chosen_parts:
            raise ConfigError(f"{options.chosen_parts[0]} runs in one process, not in {self.ranks.size}")
        own_sampling = type(self.companion).sampled is not Companion.sampled and not watches(method, settings)
        if options.scaffold != "none" and own_sampling:
            raise ConfigError(
                "the method notes more of its samples than hinted ones have: leave --scaffold out"
            )
        self.shown = Shown([], [], [])

    def _server(self) -> Served | None:
        """What samples instead of the policy, if anything."""
        kind, _, address = self.options.generation.partition(":")
        if kind == "own":
            return None
        if self.ranks.size > 1:
            raise ConfigError("a server samples for one process: train with one")
        if environment_of(self.task) is not None or self.options.context != "full":
            raise ConfigError("a server samples responses, not episodes: leave --generation out")
        return Served(address, self.policy, folder_of(self.options.model))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what ``update`` returns."""
        names = component_names(self.task)
        own = (*self.prompting.metrics, *self.companion.metrics)
        return (*SAMPLED, *(f"reward_{name}" for name in names), *UPDATED, *own)

    @property
    def progress(self) -> float:
        """0 in the first step, 1 in the last."""
        return min(1.0, self.steps / max(self.options.steps - 1, 1))

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        warmup = self.options.warmup
        return self.options.lr * (min(1.0, (self.updates + 1) / warmup) if warmup else 1.0)

    def update(self) -> dict[str, Tensor]:
        """One batch of rollouts and the updates from it; returns its metrics."""
        metrics = self._step()
        self.engine.remember(self.policy)
        self.steps += 1
        return metrics

    def _step(self) -> dict[str, Tensor]:
        batch, metrics = self._collect()
        if len(batch.rewards) == 0:  # every group was alike: nothing to learn from
            return metrics
        batch, chosen = self.companion.chosen(self._prepared(batch))
        metrics |= chosen
        sums: dict[str, Tensor] = {}
        number = 0
        for _ in range(self.options.reuse):
            for rows in self._minibatches(batch):
                found = self._update(self._minibatch(batch, rows))
                sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
                number += 1
        return metrics | {name: value / number for name, value in sums.items()}

    # sampling

    def _collect(self) -> tuple[TextRollouts, dict[str, Tensor]]:
        """A batch of groups worth learning from, and metrics of all that was sampled for it."""
        kept: list[TextRollouts] = []
        metrics: list[dict[str, Tensor]] = []
        groups, method = 0, self.method
        for number in range(method.rounds(self.settings)):
            batch, found = self._sampled(number)
            metrics.append(found)
            if method.keep is not None:
                batch = batch.rows(method.keep(self.settings, batch))
            kept.append(batch)
            groups += len(batch.group_ids.unique())
            if groups >= self.options.prompts:
                break
        batch = joined(kept, self.policy.pad)
        if method.keep is not None:
            batch = first_groups(batch, self.options.prompts)
        names = dict.fromkeys(name for found in metrics for name in found)
        means = {n: torch.stack([m[n] for m in metrics if n in m]).mean() for n in names}
        return batch, means | self.prompting.stepped()

    def _sampled(self, number: int) -> tuple[TextRollouts, dict[str, Tensor]]:
        """One sampling: prompts, responses, rewards."""
        o, method, task = self.options, self.method, self.task
        sampler = self.engine.sampler(self.policy)
        own: dict[str, Tensor] = {}
        if number == 0:
            own = self.prompting.refreshed(self.steps, partial(self._respond, sampler))
        prompts, copies = self.prompting.ask()
        demonstrations = None
        if method.data != "rollouts":
            noise = getattr(self.settings, "noise", 0.0)
            drawn = demonstrations_of(task, prompts, self.streams["demonstrations"], noise)
            demonstrations = drawn.rows(self.ranks.share(o.prompts)).to(self.device)
        share = self.ranks.share(o.prompts)
        prompts = prompts.rows(share).to(self.device)
        groups = number * o.prompts + torch.arange(o.prompts, device=self.device)[share]
        parts: list[TextRollouts] = []
        found: dict[str, Tensor] = {}
        if method.data != "demonstrations":
            copies = copies.to(self.device) if isinstance(copies, Tensor) else copies
            draw = partial(
                respond, sampler, task, prompts,
                copies=copies, temperature=o.temperature, generator=self.streams["sampling"],
            )  # fmt: skip
            responses, fields = self.companion.sampled(sampler, draw)
            many, ids = prompts.repeat(copies), groups.repeat_interleave(copies)
            batch, found = self._rewarded(many, responses, ids)
            found |= own | self.prompting.observe(prompts, batch)
            batch, hinted = self.prompting.rescued(
                self.steps, prompts, batch, partial(self._respond, sampler), self._rows
            )
            found |= hinted
            batch = batch.replace(**fields)
            if method.greedy_baseline:
                best = respond(self.policy, task, prompts, temperature=0.0)
                baseline = torch.stack([*task.rewards(prompts, best).values()]).sum(dim=0)
                batch = batch.replace(baseline_rewards=baseline.repeat_interleave(copies))
                self.rollouts += self.ranks.total(len(prompts))
                self.tokens += self.ranks.total(int(best.mask.sum()))
            self.rollouts += self.ranks.total(len(many))
            parts.append(batch)
            if (further := self.companion.more(sampler, many, responses)) is not None:
                parts.append(self._further(*further))
        if demonstrations is not None:
            batch, of_demonstrations = self._rewarded(prompts, demonstrations, groups, demo=True)
            found = found or of_demonstrations
            parts.append(batch)
        found = {name: value / self.ranks.size for name, value in self.ranks.add(found).items()}
        everyones = self.ranks.gathered(joined(parts, self.policy.pad))
        return joined([moved(part, self.device) for part in everyones], self.policy.pad), found

    def _further(
        self, prompts: Prompts, responses: Responses, ids: Tensor, fields: dict[str, Tensor]
    ) -> TextRollouts:
        """What a companion sampled beside the batch, in groups of its own."""
        shown = self.shown
        batch, _ = self._rewarded(prompts, responses, ids + FURTHER * (1 + self.ranks.rank))
        self.rollouts += self.ranks.total(len(ids))
        self.shown = shown
        return batch.replace(**fields)

    def _rewarded(
        self, prompts: Any, responses: Any, ids: Tensor, *, demo: bool = False
    ) -> tuple[TextRollouts, dict[str, Tensor]]:
        batch = self._rows(prompts, responses, ids, demo=demo)
        assert batch.success is not None
        outcome, success = batch.components.sum(dim=1), batch.success
        metrics = {"reward": outcome.mean(), "success": success.float().mean()}
        metrics |= group_shares(outcome, ids, success)
        metrics["length"] = responses.lengths.float().mean()
        names = component_names(self.task)
        metrics |= {
            f"reward_{name}": value.float().mean()
            for name, value in zip(names, batch.components.T, strict=True)
        }
        self.tokens += self.ranks.total(int(responses.mask.sum()))
        text = self.task.vocabulary.text
        some = range(0, len(prompts), max(len(prompts) // 4, 1))
        self.shown = Shown(
            [text(prompts.tokens[i][prompts.mask[i]]) for i in some],
            [text(responses.row(i)) for i in some],
            [float(batch.rewards[i]) for i in some],
        )
        return batch, metrics

    def _rows(self, prompts: Any, responses: Any, ids: Tensor, *, demo: bool = False) -> TextRollouts:
        """Rows of a batch, one a response, with their rewards."""
        each = torch.stack([*self.task.rewards(prompts, responses).values()], dim=1)
        outcome = each.sum(dim=1)
        if self.method.shaped is not None:
            outcome = self.method.shaped(self.settings, outcome, responses, prompts.limits)
        batch = rollouts(prompts, responses, outcome, ids, each, demo=demo)
        cut = self._cut(batch) if responses.cut is None else responses.cut
        batch = batch.replace(cut=cut & ~batch.demo, success=self.task.success(prompts, responses))
        if self.method.answers:
            batch = batch.replace(answer_ids=self.task.final_answers(prompts, responses))
        return batch

    def _respond(self, sampler: Any, prompts: Any, copies: int = 1) -> Responses:
        """Responses beside those of the batch, to its hinted prompts or to score the pool; they count as rollouts."""
        responses = respond(
            sampler, self.task, prompts.to(self.device),
            copies=copies, temperature=self.options.temperature, generator=self.streams["sampling"],
        )  # fmt: skip
        self.rollouts += len(responses.tokens)
        self.tokens += int(responses.mask.sum())
        return responses

    def _cut(self, batch: TextRollouts) -> Tensor:
        """(B,) bool: responses as long as allowed that did not end, where the task lets them end."""
        ends, lengths = self.policy.ends, batch.mask.sum(dim=1)
        last = batch.tokens.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        can_end = (self.policy.bias[ends] > 0.5 * FORBIDDEN).any()
        cut: Tensor = can_end & (lengths >= batch.limits) & ~torch.isin(last, ends)
        return cut

    # what is known before the first update

    @torch.no_grad()
    def _prepared(self, batch: TextRollouts) -> TextRollouts:
        """The batch with log-probabilities of the old and the reference policy, values, and advantages."""
        old, values = self._old(batch)
        reference = None if self.reference is None else self._scores(batch, self.reference)[0]
        batch = batch.replace(old_log_probs=old, ref_log_probs=reference)
        batch = batch.replace(rewards=self._with_kl(batch, old, reference))
        if values is not None:
            mask, lam = batch.mask, getattr(self.settings, "lam", 1.0)
            following = next_values(values, mask=mask)
            returns = values + gae(batch.rewards, values, following, mask=mask, discount=1.0, lam=lam)
            batch = batch.replace(values=values, next_values=following, returns=returns)
        batch = self.companion.measured(batch)
        advantages = self.estimator.advantages(batch)
        if not self._means_of_groups():
            advantages = self.prompting.even(advantages, batch.group_ids)
        return batch.replace(advantages=advantages)

    def _means_of_groups(self) -> bool:
        """Whether the loss is a mean over groups, in which all prompts weigh the same by themselves."""
        return isinstance(self.estimator, GroupEstimator) and self.estimator.per == "groups"

    def _old(self, batch: TextRollouts) -> tuple[Tensor | None, Tensor | None]:
        """Old log-probabilities (None: the only update finds them by itself) and values (None: no critic)."""
        o = self.options
        in_reward = self.reference is not None and self.method.kl != "loss"
        found_later = o.bypass or (o.reuse * o.minibatches == 1 and not in_reward)
        if self.critic is None and found_later:
            return (batch.rollout_log_probs if o.bypass else None), None
        log_probs, values = self._scores(batch, self.policy)
        return (batch.rollout_log_probs if o.bypass else log_probs), values

    def _with_kl(self, batch: TextRollouts, old: Tensor | None, reference: Tensor | None) -> Tensor:
        """The rewards that the method's advantages read: of rows or of tokens, less the KL where it goes there."""
        log_ratio = None if old is None or reference is None else old - reference
        if self.method.kl == "step-reward" or self.critic is not None:
            in_reward = self.method.kl == "step-reward" and log_ratio is not None
            coefficient = self.settings.kl if in_reward else 0.0
            steps = 0.0 if batch.step_rewards is None else batch.step_rewards
            rest = batch.rewards if batch.step_rewards is None else batch.rewards - batch.step_rewards.sum(1)
            return steps + rewards_at_end(rest, batch.mask, log_ratio, coefficient)
        if self.method.kl == "reward" and log_ratio is not None:
            return batch.rewards - self.settings.kl * sequence_sum(log_ratio, batch.mask)
        return batch.rewards

    @torch.no_grad()
    def _scores(self, batch: TextRollouts, policy: Any) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and values of all rows, in micro-batches."""
        found, parts, size = [], self._parts(batch), self.ranks.size
        for rows in parts[self.ranks.rank :: size]:
            scores = self._score(batch.rows(rows), policy)
            found.append(
                (scores.log_probs, None if self.critic is None else self.critic(scores.hidden)[..., 0])
            )
        everyones = self.ranks.gathered(found)
        whole = [everyones[i % size][i // size] for i in range(len(parts))]
        log_probs = torch.cat([part[0].to(self.device) for part in whole])
        if self.critic is None:
            return log_probs, None
        return log_probs, torch.cat([part[1].to(self.device) for part in whole])

    @torch.no_grad()
    def scored(self, batch: TextRollouts, *, entropy: bool = False) -> Iterator[tuple[Tensor, Scores]]:
        """Rows of each micro-batch and what the current policy says of them, without gradient."""
        for rows in self._parts(batch):
            yield rows, self._score(batch.rows(rows), self.policy, entropy)

    def _score(self, batch: TextRollouts, policy: Any, entropy: bool = False) -> Scores:
        if batch.segments is not None and bool((batch.segments > 0).any()):
            assert batch.contexts is not None
            assert batch.context_mask is not None
            return score_segments(
                policy, (batch.contexts, batch.context_mask), batch.segments, batch.tokens, batch.mask,
                temperature=self.options.temperature, entropy=entropy,
            )  # fmt: skip
        owners = Groups(batch.group_ids if batch.sources is None else batch.sources).index  # equal prompts
        first = torch.zeros_like(owners).scatter(0, owners, torch.arange(len(owners), device=owners.device))
        first = first[: int(owners.max()) + 1]
        with self.companion.scoring(batch, policy, first):
            return score(
                policy, batch.prompt_tokens[first], batch.prompt_mask[first], batch.tokens, batch.mask,
                temperature=self.options.temperature, entropy=entropy, owners=owners,
            )  # fmt: skip

    # updates

    def _minibatches(self, batch: TextRollouts) -> list[Tensor]:
        """Row indices of each update: whole groups, in random order."""
        ids = batch.group_ids
        if self.options.minibatches == 1:
            return [torch.arange(len(ids), device=ids.device)]
        groups = ids.unique()
        order = torch.randperm(len(groups), generator=self.streams["minibatches"]).to(ids.device)
        parts = groups[order].tensor_split(self.options.minibatches)
        return [torch.isin(ids, part).nonzero()[:, 0] for part in parts if len(part)]

    def _minibatch(self, batch: TextRollouts, rows: Tensor) -> TextRollouts:
        """Rows of a batch, in whose mean each prompt weighs what it does in the mean over the batch."""
        part = batch.rows(rows)
        if self.prompting.predictor is None or part.advantages is None or self._means_of_groups():
            return part
        here, whole = count(part.mask, part.group_ids), count(batch.mask, batch.group_ids)
        size = float(here.rows) / here.groups / (float(whole.rows) / whole.groups)
        return part.replace(advantages=size * part.advantages)

    def _parts(self, batch: TextRollouts) -> tuple[Tensor, ...]:
        size = len(batch.tokens)
        micro = self.options.micro_batch or -(-size // self.ranks.size)
        if self.method.coupled and micro < size:
            return tuple(whole_groups(batch.group_ids, max(micro, self.options.group)))
        return torch.split(torch.arange(size, device=self.device), micro)

    def _update(self, batch: TextRollouts) -> dict[str, Tensor]:
        """One update from a minibatch, its gradient summed over micro-batches under global counts."""
        whole, samples = count(batch.mask, batch.group_ids), count(batch.mask & ~batch.demo[:, None])
        batch, masked = self.companion.masked(batch)
        counts = replace(whole, tokens=count(batch.mask).tokens)  # a row without a token left is still a row
        samples = replace(samples, tokens=count(batch.mask & ~batch.demo[:, None]).tokens)
        sums: dict[str, Tensor] = {}
        gradients: list[list[Tensor]] = []
        pieces = self.companion.pieces(batch)
        for piece in (batch.rows(rows) for rows in pieces):
            self.optimizer.zero_grad()
            for rows in self._parts(piece)[self.ranks.rank :: self.ranks.size]:
                found = self.accumulate(piece.rows(rows), counts)
                sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
            self.ranks.add_gradients(self.parameters)
            if len(pieces) > 1:
                gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        sums = self.ranks.add(sums)
        # sums that no demonstration is in
        shares = {"engine_gap": counts.tokens / samples.tokens, "kl": counts.rows / samples.rows}
        if self.options.bypass:
            shares |= dict.fromkeys(("log_ratio", "approx_kl"), counts.tokens / samples.tokens)
        sums |= {name: share * sums[name] for name, share in shares.items() if name in sums}
        for parameter, *parts in zip(self.parameters, *gradients, strict=True) if gradients else ():
            parameter.grad = torch.stack(parts).sum(dim=0)
        factor, rates = self.companion.rate(gradients)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * float(factor)
        if masked == {} or bool(batch.mask.any()):  # nothing kept: not even momentum moves
            self.optimizer.step()
        self.updates += 1
        return sums | masked | rates | {"grad_norm": norm}

    def accumulate(self, batch: TextRollouts, counts: Counts) -> dict[str, Tensor]:
        """Add the gradient of a part of a batch; returns its share of the metrics."""
        scores = self._score(batch, self.policy, entropy=True)
        log_probs, mask = scores.log_probs, batch.mask
        assert scores.entropy is not None
        old = log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
        if self.options.bypass:  # nobody recorded those of demonstrations, and no loss reads them
            old = old.where(~batch.demo[:, None], log_probs.detach())
        batch = batch.replace(old_log_probs=old)  # in the only update the old policy is the current one
        values = None if self.critic is None else self.critic(scores.hidden)[..., 0]
        loss = self.estimator.loss(log_probs, batch, counts, entropy=scores.entropy, predicted_values=values)
        loss.backward()
        with torch.no_grad():
            now, tokens = log_probs.detach(), counts.tokens
            share = mask.sum() / tokens
            metrics = {n: v * share for n, v in self.estimator.diagnostics(now, batch).items()}
            metrics["loss"] = loss.detach()
            metrics["surrogate"] = self.estimator.surrogate(now, batch, counts)
            metrics["entropy"] = scores.entropy.detach().sum() / tokens
            metrics["log_ratio"] = (now - old).abs().where(mask, 0.0).sum() / tokens
            if self.method.data != "demonstrations":
                sampled = mask & ~batch.demo[:, None]
                gap = (now - batch.rollout_log_probs).abs()
                metrics["engine_gap"] = gap.where(sampled, 0.0).sum() / tokens
                if batch.ref_log_probs is not None:
                    metrics["kl"] = sequence_sum(now - batch.ref_log_probs, sampled).sum() / counts.rows
        return metrics

    # state

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "policy": trained(self.policy),
            "critic": None if self.critic is None else self.critic.state_dict(),
            "reference": None if self.reference is None else trained(self.reference),
            "optimizer": self.optimizer.state_dict(),
            "engine": self.engine.state_dict(),
            "streams": {name: g.get_state() for name, g in self.streams.items()},
            "sampling": self.ranks.gathered(self.streams["sampling"].get_state()),
            "companion": self.companion.state_dict(),
            "prompting": self.prompting.state_dict(),
            "counters": [self.steps, self.updates, self.rollouts, self.tokens],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        _restore(self.policy, state["policy"])
        for name in ("critic", "reference"):
            module = getattr(self, name)
            if (module is None) != (state[name] is None):
                raise ConfigError(f"the saved state has {'no ' if module else 'a '}{name}")
            if module is not None:
                _restore(module, state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.engine.load_state_dict(state["engine"])
        for name, saved in state["streams"].items():
            self.streams[name].set_state(saved.cpu())
        if len(state["sampling"]) != self.ranks.size:
            raise ConfigError(
                f"{len(state['sampling'])} processes trained it, now there are {self.ranks.size}"
            )
        self.streams["sampling"].set_state(state["sampling"][self.ranks.rank].cpu())
        self.companion.load_state_dict(state["companion"])
        self.prompting.load_state_dict(state["prompting"])
        self.steps, self.updates, self.rollouts, self.tokens = state["counters"]


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module without its frozen parameters."""
    names = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in names}


def _restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    if state.keys() != trained(module).keys():
        raise ConfigError("the saved state is that of another model")
    module.load_state_dict(state, strict=False)
