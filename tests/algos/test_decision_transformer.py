"""Decision Transformer: loss, clipping, AdamW with warm-up, its data, and asking for different returns."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from offrl.algos import preset
from offrl.algos.decision_transformer import (
    ALGORITHM,
    DecisionTransformer,
    DecisionTransformerConfig,
    action_loss,
    finished_episodes,
    limit_norm,
)
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError
from offrl.evaluation.rollout import evaluate
from offrl.nn.decision_transformer import DecisionTransformerPolicy, transformer
from offrl.training.build import build
from offrl.training.check import batches, source_of, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32, "layers": 1}


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def make(problem=None, **settings):
    return DecisionTransformer(problem or tiny_problem(), DecisionTransformerConfig(**SMALL | settings))


# Loss and step


def test_the_loss_is_the_mean_over_the_steps_that_count():
    """Errors (1, 3), (2, 0) and one beyond the end: (5 + 2) / 2."""
    predicted = torch.tensor([[[[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]]]])
    loss = action_loss(predicted, torch.zeros_like(predicted), torch.tensor([[[1.0, 1.0, 0.0]]]))
    assert loss.tolist() == [3.5]


def test_each_seeds_gradients_are_cut_together_to_the_limit():
    """Norms 5 and 0.5 under a limit of 1: the first is divided by 5, the second stays."""
    grads = (torch.tensor([[3.0], [0.3]]), torch.tensor([[[4.0]], [[0.4]]]))
    cut, norm = limit_norm(grads, 1.0)
    torch.testing.assert_close(norm, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(cut[0], torch.tensor([[0.6], [0.3]]))
    torch.testing.assert_close(cut[1], torch.tensor([[[0.8]], [[0.4]]]))


def test_steps_beyond_the_last_that_is_told_apart_train_its_vector_of_their_own_seed():
    """Episodes of 25 steps, 5 told apart; in a stack the next row of the table is another seed's."""
    learner, (batch,) = make(tiny_problem((0, 1)), max_episode_steps=5), series(tiny_problem((0, 1)), 1)
    assert batch.steps.max() > 20
    grads, _ = learner.gradients(batch, None)
    held, _ = learner.gradients(dataclasses.replace(batch, steps=batch.steps.clamp(max=4)), None)
    assert all(torch.equal(a, b) for a, b in zip(grads, held, strict=True))


def test_updates_are_torchs_adamw_with_clipping_and_linear_warm_up():
    settings = {"dropout": 0.0, "lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 3}
    learner = make(**settings)
    params = [p.detach().clone().requires_grad_() for p in learner.net.params]
    adam = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min((step + 1) / 3, 1))
    for batch in series(tiny_problem(), 5):
        out = transformer(
            params, 1, batch.returns_to_go / 1000, batch.observations, batch.actions, batch.steps
        ).tanh()
        keep = batch.valid == 1
        loss = (out[keep] - batch.actions[keep]).square().mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 0.25)
        adam.step()
        warm.step()
        metrics = learner.update(batch)
        torch.testing.assert_close(metrics["action_loss"], loss.detach()[None])
    for ours, theirs in zip(learner.net.constant, params, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-5)


def test_what_lies_beyond_the_end_of_an_episode_does_not_count():
    batch = series(tiny_problem(), 1)[0]
    assert (batch.valid == 0).any()
    beyond = batch.valid == 0
    junk = {
        name: torch.where(beyond.view(*beyond.shape, *(1,) * (x.dim() - 3)), 7.0, x)
        for name, x in (("observations", batch.observations), ("actions", batch.actions))
    }
    junk["returns_to_go"] = torch.where(beyond, 7.0, batch.returns_to_go)
    learner, other = make(dropout=0.0), make(dropout=0.0)
    one, _ = learner.gradients(batch, None)
    two, _ = other.gradients(dataclasses.replace(batch, **junk), None)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_dropout_is_drawn_anew_for_each_update_and_off_in_acting():
    batch, learner = series(tiny_problem(), 1)[0], make(dropout=0.5, lr=1e-9)
    losses = {learner.update(batch)["action_loss"].item() for _ in range(3)}
    assert len(losses) == 3
    policy, x = learner.policy(), torch.randn(4, 3)
    assert torch.equal(policy(x), policy(x))


# Data


def episodes(lengths, unfinished=0):
    """Rewards 1, 2, 3, ... through the file; every episode is cut by a time limit, but for an unfinished last one."""
    n = sum(lengths) + unfinished
    cut = np.zeros(n, dtype=bool)
    cut[np.cumsum(lengths) - 1] = True
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        rewards=np.arange(1, n + 1, dtype=np.float32),
        terminated=np.zeros(n, dtype=bool),
        truncated=cut,
    )


def build_on(data, **settings):
    config = DecisionTransformerConfig(**SMALL | {"context": 3} | settings)
    run = {"rows": "qlearning", "device": "cpu", "seed": 0, "steps": 10, "compile": False, "threads": 1}
    return build(ALGORITHM, config, data, None, run)


def test_it_learns_from_every_step_with_undiscounted_returns_to_go():
    """Rewards (1, 2) and (3, 4, 5): the last steps are kept though no next observation is known."""
    learner, source = build_on(episodes((2, 3)))
    assert len(source) == 5
    assert source.table[:, -1].tolist() == [3.0, 2.0, 12.0, 9.0, 5.0]
    assert learner.target_return == 12.0
    assert learner.policy().target_return == 12.0
    assert build_on(episodes((2, 3)), target_return=99.0)[0].policy().target_return == 99.0


def test_the_default_target_is_the_best_episodes_return_not_the_best_return_to_go():
    """Rewards (-9, 5): the return is -4, from the second step on 5."""
    data = episodes((2, 2))
    fields = data.fields | {"rewards": np.array([-9, 5, -8, 2], dtype=np.float32)}
    assert build_on(OfflineDataset.from_fields(fields))[0].target_return == -4.0


def test_an_unfinished_last_episode_is_left_out():
    data = finished_episodes(episodes((2, 3), unfinished=4), DecisionTransformerConfig())
    assert data.num_episodes == 2
    assert data.num_steps == 5
    flagged = episodes((2, 5, 4))  # as a recording that stops flags it: others were longer
    assert finished_episodes(flagged, DecisionTransformerConfig()).num_episodes == 2
    whole = episodes((2, 3))
    assert finished_episodes(whole, DecisionTransformerConfig()) is whole


def test_a_batch_without_windows_is_refused():
    problem = tiny_problem()
    batch = source_of(problem, 4, returns_to_go=True).sample(problem.streams("data"))
    with pytest.raises(ValueError, match="needs windows"):
        make(dropout=0.0).update(batch)


# Known answer


def test_asked_for_a_high_or_a_low_return_it_does_what_earned_that():
    """One-step episodes whose reward is the action: asked for R, it answers with R."""
    actions = torch.linspace(-0.9, 0.9, 200)[:, None]
    problem = dataclasses.replace(
        tiny_problem(rows=200),
        observations=torch.zeros(200, 3),
        actions=actions,
        rewards=actions[:, 0],
        returns_to_go=actions[:, 0],
        episode=torch.arange(200),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )
    settings = {"hidden": 16, "layers": 1, "lr": 5e-3, "warmup_steps": 10, "return_scale": 1.0, "context": 2}
    for target in (-0.6, 0.0, 0.6):
        learner = DecisionTransformer(problem, DecisionTransformerConfig(target_return=target, **settings))
        source = source_of(problem, 64, returns_to_go=True, window=2)
        generators = problem.streams("data")
        for _ in range(250):
            learner.update(source.sample(generators))
        assert learner.policy()(torch.zeros(1, 3)).item() == pytest.approx(target, abs=0.12)


class Recorder(DecisionTransformerPolicy):
    """Keeps the state of every step, of all copies."""

    states = []

    def act(self, observations, state=None, **settings):
        actions, state = super().act(observations, state, **settings)
        self.states.append(state)
        return actions, state


def test_an_evaluation_takes_what_was_earned_off_what_is_asked_for():
    policy = Recorder(
        3, 1, [-2.0], [2.0], hidden=8, layers=1, target_return=-500.0, return_scale=10.0, context=4
    )
    Recorder.states.clear()
    result = evaluate(policy, "Pendulum-v1", episodes=2, seed=3, max_steps=12)
    last = policy.states[11]  # before the last step's reward
    full = evaluate(policy, "Pendulum-v1", episodes=2, seed=3, max_steps=11)
    torch.testing.assert_close(
        last.to_go[:2], torch.from_numpy((-500.0 - full.returns) / 10).float(), rtol=1e-4, atol=1e-3
    )
    assert result.lengths.tolist() == [12, 12]
    assert policy.states[0].returns.shape == (5, 1)
    assert policy.states[11].returns.shape == (5, 4)


# Settings


def test_presets_and_defaults_are_those_of_the_official_experiment():
    config = DecisionTransformerConfig(**preset(ALGORITHM, "hopper-medium-v2"))
    assert (config.target_return, config.return_scale) == (3600.0, 1000.0)
    assert preset(ALGORITHM, "halfcheetah-medium-expert-v2") == {"target_return": 12_000.0}
    assert preset(ALGORITHM, "walker2d-medium-v2") == {"target_return": 5000.0}
    assert (config.context, config.hidden, config.layers, config.heads) == (20, 128, 3, 1)
    assert (config.lr, config.weight_decay, config.warmup_steps, config.batch_size) == (
        1e-4,
        1e-4,
        10_000,
        64,
    )
    assert (config.dropout, config.max_episode_steps) == (0.1, 1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads must divide hidden"),
        ({"context": 0}, "context must be 1"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"return_scale": 0.0}, "return_scale must be above 0"),
        ({"target_return": float("nan")}, "target_return must be a finite"),
        ({"weight_decay": -1.0}, "weight_decay must be 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DecisionTransformerConfig(**settings)
