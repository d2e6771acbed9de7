"""Going on online: what is played, what is drawn, where it starts, and that a stop in mid-episode changes nothing."""

import dataclasses
import json
import math
import random
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch

import offrl
from offrl.algos import load_algorithm
from offrl.algos.iql import IQL, IQLConfig
from offrl.algos.rebrac import ReBRAC, ReBRACConfig, ReBRACOnlineSettings
from offrl.algos.td3_bc import TD3BC, TD3BCConfig, actor_loss
from offrl.cli import main
from offrl.collect import collect
from offrl.data.dataset import OfflineDataset
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import MixedSource, UniformSource
from offrl.errors import CheckpointError, ConfigError, Stopped
from offrl.evaluation.groups import group_runs
from offrl.evaluation.rollout import evaluate
from offrl.evaluation.runs import read_run
from offrl.nn.policy import DeterministicPolicy, GaussianPolicy, load_policy
from offrl.nn.random_policy import RandomPolicy
from offrl.training.build import build, dataset_env
from offrl.training.check import source_of, tiny_problem
from offrl.training.checkpoint import load_checkpoint
from offrl.training.fine_tuning import fine_tune, inherited
from offrl.training.many import train_seeds
from offrl.training.offline import load_offline, of_seed
from offrl.training.online import Episode, OnlineSource, Player, RowRule
from offrl.training.options import RunOptions, SeedOptions, make_settings
from offrl.training.problem import OnlineSettings, PulledOnlineSettings
from offrl.training.run_dir import RunDir
from offrl.training.runner import resume, start
from offrl.training.seeding import stream, streams

ONLINE = ("td3_bc", "iql", "rebrac", "cql", "cal_ql", "awac", "sac_n", "edac", "fql")
OFFLINE_ONLY = ("bc", "prdc", "a2pr", "odice", "decision_transformer")
LIMIT, HORIZON = 1.0, 7
TINY = {"hidden": 8, "batch_size": 9, "num_critics": 3, "num_actions": 2}
OPTIONS = {"log_every": 3, "eval_episodes": 2, "checkpoint_every": 4, "eval_every": 10}


class Walk(gymnasium.Env):
    """A point on a line, pushed by the action in [-2, 2]; beyond +-1 the episode terminates. Its start is drawn."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    jitter = 0.0  # above 0: an environment that its seed does not determine

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-0.5, 0.5), 0
        return self.seen(), {}

    def step(self, action):
        self.x += 0.2 * float(action[0]) + self.np_random.normal(0, 0.2) + self.jitter * random.random()
        self.t += 1
        return self.seen(), 1.0 - abs(self.x), bool(abs(self.x) > LIMIT), False, {}

    def seen(self):
        return np.array([self.x, self.t / HORIZON])


gymnasium.register("TestWalk-v0", entry_point=Walk, max_episode_steps=HORIZON)


def walks(episodes: int = 30) -> OfflineDataset:
    """Random walks: some terminate, the others are cut after 7 steps."""
    env, rng = gymnasium.make("TestWalk-v0", disable_env_checker=True), np.random.default_rng(0)
    keys = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
    table = {name: [] for name in keys}
    for seed in range(episodes):
        seen, ended = env.reset(seed=seed)[0], False
        while not ended:
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            for name, value in zip(
                keys, (seen, action, reward, terminated, truncated, following), strict=True
            ):
                table[name].append(value)
            seen, ended = following, terminated or truncated
    arrays = {name: np.array(values) for name, values in table.items()}
    assert arrays["terminated"].any()
    assert arrays["truncated"].any()
    return OfflineDataset.from_arrays(**arrays, metadata={"name": "walks", "env_id": "TestWalk-v0"})


@pytest.fixture(scope="module")
def data() -> OfflineDataset:
    return walks()


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


def settings_of(algorithm: str, **more):
    known = make_settings(algorithm, {})
    return make_settings(algorithm, {k: v for k, v in TINY.items() if hasattr(known, k)} | more)


def offline(out: Path, data, algorithm: str = "td3_bc", seed: int = 3, **more) -> Path:
    options = RunOptions(out=out, seed=seed, steps=8, **OPTIONS)
    return start(algorithm, settings_of(algorithm, **more), options, dataset=data).directory


def go_online(out: Path, data, *runs: Path, algorithm: str = "td3_bc", steps: int = 20, **online):
    options, settings = inherited(runs, algorithm)
    options = RunOptions(**{**vars(options), "out": out, "steps": steps})
    kind = load_algorithm(algorithm)[1].online
    return fine_tune(algorithm, settings, options, runs, kind(**{"warmup_steps": 5} | online), dataset=data)


def only_run(out: Path) -> Path:
    (config,) = out.glob("*/*/seed*/config.json")
    return config.parent


# What is drawn


def mixed(batch_size: int, rows: int = 40) -> MixedSource:
    p = tiny_problem(rows=100)
    source = MixedSource(
        p.observations,
        p.actions,
        p.rewards,
        p.next_observations,
        p.terminated,
        batch_size=batch_size,
        capacity=50,
    )
    source.append(torch.arange(rows * 10.0).view(rows, 10) + 1000.0)
    return source


@pytest.mark.parametrize(("batch_size", "old"), [(64, 32), (9, 5), (1, 1)])
def test_half_of_every_batch_is_offline_and_half_played(batch_size, old):
    source, generators = mixed(batch_size), streams((0, 1), "data")
    for _ in range(20):
        batch = source.sample(generators)
        assert batch.rows.shape == (2, batch_size)
        assert ((batch.rows < 100).sum(dim=1) == old).all()
        assert batch.rows.max() < 140
        assert ((batch.rewards >= 1000) == (batch.rows >= 100)).all()
        assert torch.equal(
            batch.observations[batch.rows >= 100][:, 0], 1000.0 + 10 * (batch.rows[batch.rows >= 100] - 100)
        )


def test_every_row_of_both_halves_is_drawn_and_seeds_draw_apart():
    source, generators = mixed(64), streams((0, 1), "data")
    drawn = torch.cat([source.sample(generators).rows for _ in range(60)], dim=1)
    assert all(set(rows.tolist()) == set(range(140)) for rows in drawn)
    alone = mixed(64)
    assert torch.equal(
        alone.sample(streams((1,), "data")).rows[0], mixed(64).sample(streams((0, 1), "data")).rows[1]
    )


def test_more_rows_than_there_is_room_for_are_refused():
    with pytest.raises(RuntimeError):
        mixed(8, rows=51)


# What is played


def fixed_policy(stochastic: bool) -> DeterministicPolicy | GaussianPolicy:
    torch.manual_seed(0)
    kind = GaussianPolicy if stochastic else DeterministicPolicy
    return kind(2, 1, (4,), [-2.0], [2.0])


def online_source(
    noise: float = 0.0, next_actions: bool = False, to_go=None, warmup: int = 0
) -> OnlineSource:
    columns = (torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, 2), torch.zeros(3))
    extra = (torch.zeros(3, 1) if next_actions else None, torch.zeros(3) if to_go else None)
    source = MixedSource(*columns, *extra, batch_size=4, capacity=200)
    rule = RowRule(
        ObservationNormalizer(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 4.0])),
        lambda rewards: (3 * rewards - 1).astype(np.float32),
        to_go,
        next_actions,
    )
    env = gymnasium.make("TestWalk-v0", disable_env_checker=True)
    return OnlineSource(source, Player(env, 5, noise), rule, warmup)


@pytest.mark.parametrize(("stochastic", "noise"), [(True, 0.0), (False, 0.3)])
def test_played_rows_equal_a_rollout_by_hand(stochastic, noise):
    """Same seeds, same draws, another loop: raw steps, normalized and scaled as the rule says."""
    source, policy = online_source(noise), fixed_policy(stochastic)
    for _ in range(60):
        source.refresh(lambda: policy)
    got = source.mixed.table[3:63]
    env, generator = Walk(), stream(5, "act")
    episode, expected, returns, flags = -1, [], [], []
    t, seen = HORIZON, None
    for _ in range(60):
        if t == HORIZON or flags[-1]:
            episode, t = episode + 1, 0
            words = np.random.SeedSequence([3, 5, episode]).generate_state(2, np.uint32)
            seen = env.reset(seed=int(words[0]))[0].astype(np.float32)
            returns.append(0.0)
        with torch.no_grad():
            action = policy.sample(torch.from_numpy(seen)[None], generator)
            if noise:
                action = (action + noise * 2.0 * torch.randn((1, 1), generator=generator)).clamp(-2, 2)
        following, reward, terminated, _, _ = env.step(action[0].numpy())
        following, t = following.astype(np.float32), t + 1
        flags.append(terminated)
        returns[-1] += reward
        o, n = ((x - np.float32([0.5, -1.0])) / np.float32([2.0, 4.0]) for x in (seen, following))
        expected.append(
            [*o, *action[0].tolist(), np.float32(3 * np.float32(reward) - 1), *n, float(terminated)]
        )
        seen = following
    np.testing.assert_allclose(got.numpy(), np.array(expected, np.float32), rtol=0, atol=1e-6)
    ends = np.array(flags)
    assert 0 < ends.sum() < episode, "some episodes must terminate, some be cut"
    assert source.player.number == episode + (t == HORIZON or terminated), "the next one begins at once"
    assert source.mixed.appended == 60


def test_a_time_limit_is_no_termination():
    """The last row of a cut episode bootstraps: its flag is 0, and its successor is the true one, not the next start."""
    source, policy = online_source(), fixed_policy(False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()  # stands still: episodes are cut
    for _ in range(HORIZON):
        source.refresh(lambda: policy)
    rows = source.mixed.table[3 : 3 + HORIZON]
    assert (rows[:, -1] == 0).all()
    assert source.player.number == 1, "the next episode has begun"
    assert rows[-1, 5] * 4 - 1 == pytest.approx(1.0), "time 7 of 7"


def test_the_mean_return_of_ended_episodes_is_told_when_they_end():
    source, policy = online_source(), fixed_policy(False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    told = [source.refresh(lambda: policy) for _ in range(HORIZON)]
    assert all(not metrics for metrics in told[:-1])
    raw = (source.mixed.table[3 : 3 + HORIZON, 3] + 1) / 3
    assert told[-1]["online_return"].item() == pytest.approx(raw.sum().item(), rel=1e-5)


def test_the_warm_up_is_played_by_the_first_policy_and_once():
    source, asked = online_source(warmup=30), []
    policy = fixed_policy(True)

    def current():
        asked.append(source.player.steps)
        return policy

    for _ in range(4):
        source.refresh(current)
    assert asked == [0, 31, 32, 33]
    assert source.player.steps == 34


def episode_of(n: int, terminated: bool = False, truncated: bool = False) -> Episode:
    observations = [np.float32([i, 10 + i]) for i in range(n + 1)]
    actions = [np.float32([100 + i]) for i in range(n)]
    return Episode(observations, actions, [float(i + 1) for i in range(n)], terminated, truncated)


def rule(**more) -> RowRule:
    return RowRule(ObservationNormalizer.identity(2), lambda r: (2 * r).astype(np.float32), **more)


@pytest.mark.parametrize(
    ("more", "running", "cut", "terminated"),
    [({}, 4, 4, 4), ({"next_actions": True}, 3, 3, 4), ({"to_go": lambda r: r}, 0, 4, 4)],
)
def test_a_step_is_a_row_when_all_of_it_is_known(more, running, cut, terminated):
    r = rule(**more)
    assert r.whole(episode_of(4)) == running
    assert r.whole(episode_of(4, truncated=True)) == cut
    assert r.whole(episode_of(4, terminated=True)) == terminated
    assert r.whole(episode_of(4, terminated=True, truncated=True)) == terminated
    assert r.whole(episode_of(0)) == 0


def test_next_actions_are_those_played_next():
    rows = rule(next_actions=True).rows(episode_of(4, terminated=True), 1, 4)
    assert rows.tolist() == [
        [1, 11, 101, 4, 2, 12, 0, 102],
        [2, 12, 102, 6, 3, 13, 0, 103],
        [3, 13, 103, 8, 4, 14, 1, 103],
    ]
    assert rule(next_actions=True).rows(episode_of(4), 2, 3).tolist() == [[2, 12, 102, 6, 3, 13, 0, 103]]


def test_returns_are_of_the_whole_scaled_episode():
    """Rewards 1, 2, 3 doubled; with a sum to go from each row: 12, 10, 6."""
    rows = rule(to_go=lambda r: r[::-1].cumsum()[::-1].copy()).rows(episode_of(3, truncated=True), 0, 3)
    assert rows[:, -1].tolist() == [12, 10, 6]
    assert rows[:, 3].tolist() == [2, 4, 6]


def test_the_bound_of_cal_ql_holds_for_played_rows(tmp_path, data):
    """Returns-to-go of scaled rewards by episode, discounted, as those of the data; nothing comes in mid-episode."""
    run = offline(tmp_path, data, "cal_ql", discount=0.5, reward_scale=2.0)
    out = go_online(tmp_path / "online", data, run, algorithm="cal_ql", steps=12, warmup_steps=20)[
        0
    ].directory
    state = load_checkpoint(out)[0]["source"]
    played = state["appended"].numpy()
    assert len(played) + len(state["player"]["actions"]) == state["player"]["steps"] == 32
    width = played.shape[1]
    rewards, terminated, bounds, times = played[:, 3], played[:, 6], played[:, 7], played[:, 5] * HORIZON
    assert width == 8
    following = 0.0
    for row in reversed(range(len(played))):
        last = terminated[row] or round(float(times[row])) == HORIZON
        following = rewards[row] + (0.0 if last else 0.5 * following)
        assert bounds[row] == pytest.approx(following, rel=1e-5)
        raw_x = played[row, 4]
        assert rewards[row] == pytest.approx(2 * (1 - abs(raw_x)), abs=1e-5)
    assert terminated.any()


def test_without_a_warm_up_whole_episodes_come_first_where_rows_need_them(data, tmp_path):
    run = offline(tmp_path, data, "cal_ql")
    out = go_online(tmp_path / "online", data, run, algorithm="cal_ql", steps=1, warmup_steps=0)[0].directory
    state = load_checkpoint(out)[0]["source"]
    assert 1 <= len(state["appended"]) == state["player"]["steps"] <= HORIZON


# Where it starts


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


@pytest.mark.parametrize("algorithm", ONLINE)
def test_it_starts_with_the_offline_run(tmp_path, data, algorithm):
    """Networks, targets, optimizers and counters; the evaluation at step 0 is of the offline policy."""
    run = offline(tmp_path, data, algorithm)
    out = go_online(tmp_path / "online", data, run, algorithm=algorithm, steps=2)[0].directory
    config = config_of(out)
    method = load_algorithm(algorithm)[1]
    learner, source = build(method, settings_of(algorithm), data, dataset_env(data, None), config)
    load_offline(learner, config)
    saved = load_checkpoint(run)[0]["learner"]
    assert flat(learner.state_dict()) == flat(saved)
    first = [line.split(",") for line in (out / "eval.csv").read_text().splitlines()[1:]][:2]
    again = evaluate(load_policy(run), "TestWalk-v0", episodes=2, seed=3, stream=0)
    assert [(row[0], float(row[2])) for row in first] == [("0", r) for r in again.returns.tolist()]
    assert isinstance(source, OnlineSource)
    assert isinstance(source.mixed, UniformSource)


def flat(state: object) -> object:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    return [flat(value) for value in state] if isinstance(state, list | tuple) else state


def test_the_normalizer_stays_that_of_the_offline_run(tmp_path, data):
    run = offline(tmp_path, data)
    out = go_online(tmp_path / "online", data, run)[0].directory
    old, new = load_policy(run), load_policy(out)
    assert torch.equal(old.mean, new.mean)
    assert torch.equal(old.std, new.std)
    assert old.normalizes
    assert not torch.equal(old.head.weight, new.head.weight)


@pytest.mark.parametrize("algorithm", ONLINE)
def test_each_run_of_a_stack_hands_over_its_own_seed(tmp_path, data, algorithm):
    options = RunOptions(out=tmp_path, steps=6, **OPTIONS)
    many = SeedOptions(seeds=(4, 0, 7), seed_mode="stacked")
    stack = [r.directory for r in train_seeds(algorithm, settings_of(algorithm), options, many, dataset=data)]
    (result,) = go_online(tmp_path / "online", data, stack[1], algorithm=algorithm, steps=1)
    assert result.seed == 0
    config = config_of(result.directory)
    learner, _ = build(
        load_algorithm(algorithm)[1], settings_of(algorithm), data, dataset_env(data, None), config
    )
    load_offline(learner, config)  # compares with the saved policy of that seed
    whole = load_checkpoint(stack[0])[0]["learner"]
    own = of_seed(whole, learner.state_dict(), 1, 3)
    assert flat(own) == flat(learner.state_dict())


def test_several_runs_go_on_each_with_its_seed(tmp_path, data):
    runs = [offline(tmp_path, data, seed=s) for s in (3, 1)]
    results = go_online(tmp_path / "online", data, *runs)
    assert [r.seed for r in results] == [3, 1]
    alone = go_online(tmp_path / "alone", data, runs[1])[0]
    assert (alone.directory / "metrics.csv").read_bytes() == (
        results[1].directory / "metrics.csv"
    ).read_bytes()


# What changes online


def test_the_pull_of_td3_bc_halves_along_an_exponential():
    problem = tiny_problem()
    online = dataclasses.replace(problem, steps=8, online=PulledOnlineSettings(bc_end=0.5), offline_updates=6)
    learner = TD3BC(online, TD3BCConfig(hidden=8, batch_size=16))
    learner.td3.updates = 6
    source, generators, seen = source_of(problem, 16), streams((0,), "data"), []
    for _ in range(10):
        learner.update(source.sample(generators))
        seen.append(learner.bc_weight.item())
    assert seen == pytest.approx([0.5 ** min(k / 8, 1.0) for k in range(10)])
    q, pi, a = torch.ones(1, 4), torch.ones(1, 4, 2), torch.zeros(1, 4, 2)
    assert actor_loss(q, pi, a, 2.5, torch.tensor(0.25))[0].item() == pytest.approx(-2.5 + 0.25)


def test_the_decay_begins_where_the_offline_run_ended(tmp_path, data):
    """Its counter goes on from 8 updates; the first one online has the whole pull, the fifth of eight 0.5^(4/8)."""
    out = go_online(tmp_path / "online", data, offline(tmp_path, data), steps=8)[0].directory
    config = config_of(out)
    learner, source = build(
        load_algorithm("td3_bc")[1], settings_of("td3_bc"), data, dataset_env(data, None), config
    )
    load_offline(learner, config)
    seen, generators = [], streams((3,), "data")
    for _ in range(5):
        source.refresh(learner.policy)
        learner.update(source.sample(generators))
        seen.append(learner.bc_weight.item())
    assert (seen[0], seen[4]) == pytest.approx((1.0, 0.5**0.5))
    assert learner.td3.updates == 13


def test_the_actors_pull_of_rebrac_falls_linearly_to_half_and_the_critics_is_off(tmp_path, data):
    problem = tiny_problem()
    online = dataclasses.replace(problem, steps=8, online=ReBRACOnlineSettings(), offline_updates=6)
    learner = ReBRAC(online, ReBRACConfig(hidden=8, batch_size=16, actor_bc_coef=0.4, policy_delay=1))
    learner.updates, seen, generators = 6, [], streams((0,), "data")
    source = source_of(problem, 16, next_actions=True)
    for _ in range(10):
        learner.update(source.sample(generators))
        seen.append(learner.actor_bc_coef.item())
    assert seen == pytest.approx([0.4 * max(0.5, 1 - k / 8) for k in range(10)])
    assert ReBRACOnlineSettings().exploration_noise == 0.0
    run = offline(tmp_path, data, "rebrac", critic_bc_coef=0.3)
    assert inherited([run], "rebrac")[1].critic_bc_coef == 0.0


def test_the_actor_of_iql_keeps_its_step_size_online():
    problem = tiny_problem()
    for online, expected in ((None, 0.0), (OnlineSettings(), 3e-4)):
        learner = IQL(dataclasses.replace(problem, steps=10, online=online), IQLConfig(hidden=8))
        learner.updates = 10
        assert learner.actor_lr() == pytest.approx(expected)


# A stop changes nothing


def left(directory: Path) -> dict[str, object]:
    files: dict[str, object] = {name: (directory / name).read_text() for name in ("metrics.csv", "eval.csv")}
    files["weights"] = {
        name: value.numpy().tobytes()
        for name, value in safetensors.torch.load_file(directory / "policy.safetensors").items()
    }
    state, _ = load_checkpoint(directory)
    files["learner"], files["source"] = flat(state["learner"]), flat(state["source"])
    return files


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_run_stopped_in_mid_episode_resumes_bit_for_bit(tmp_path, data, signal_at, algorithm):
    """Stopped twice, at steps drawn anew in every run of this test; any of them must do."""
    run = offline(tmp_path / "offline", data, algorithm)
    whole = go_online(tmp_path / "whole", data, run, algorithm=algorithm)[0].directory
    first, second = random.randrange(1, 10), random.randrange(1, 10)
    signal_at(first)
    with pytest.raises(Stopped):
        go_online(tmp_path / "cut", data, run, algorithm=algorithm)
    directory = only_run(tmp_path / "cut")
    signal_at(second)
    with pytest.raises(Stopped, match=f"stopped at step {first + second}"):
        resume(directory, dataset=data)
    signal_at(0)
    resume(directory, dataset=data)
    assert left(directory) == left(whole), (first, second)


def test_at_some_stop_the_episode_is_under_way(tmp_path, data, signal_at):
    """Otherwise the test above would not show that an episode is played again."""
    run, lengths = offline(tmp_path / "offline", data), []
    for step in range(1, 9):
        signal_at(step)
        with pytest.raises(Stopped):
            go_online(tmp_path / str(step), data, run)
        lengths.append(len(load_checkpoint(only_run(tmp_path / str(step)))[0]["source"]["player"]["actions"]))
    assert max(lengths) >= 2


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(tmp_path, data, in_child):
    """kill -9, also before the first checkpoint: then the offline run is read again."""
    run = offline(tmp_path / "offline", data)
    whole = go_online(tmp_path / "whole", data, run, steps=40)[0].directory

    def go_on() -> None:
        found = list((tmp_path / "cut").glob("*/*/seed*/config.json"))
        if found:
            resume(found[0].parent, dataset=data)
        else:
            go_online(tmp_path / "cut", data, run, steps=40)

    for _ in range(3):
        child = in_child(go_on, kill_after=random.uniform(0.01, 0.25))
        assert child.code in (0, -signal.SIGKILL), child.err
    go_on()
    assert left(only_run(tmp_path / "cut")) == left(whole)


def test_a_run_without_its_first_checkpoint_begins_with_the_offline_run_again(tmp_path, data, signal_at):
    run = offline(tmp_path / "offline", data)
    whole = go_online(tmp_path / "whole", data, run)[0].directory
    signal_at(3)
    with pytest.raises(Stopped):
        go_online(tmp_path / "cut", data, run)
    signal_at(0)
    directory = only_run(tmp_path / "cut")
    for path in directory.glob("checkpoint*"):
        path.unlink()
    resume(directory, dataset=data)
    assert left(directory) == left(whole)


def test_a_resume_with_a_checkpoint_does_not_need_the_offline_run(tmp_path, data, signal_at):
    run = offline(tmp_path / "offline", data)
    whole = go_online(tmp_path / "whole", data, run)[0].directory
    signal_at(9)
    with pytest.raises(Stopped):
        go_online(tmp_path / "cut", data, run)
    signal_at(0)
    (run / "checkpoint.pt").write_bytes(b"gone")
    resume(only_run(tmp_path / "cut"), dataset=data)
    assert left(only_run(tmp_path / "cut")) == left(whole)


def test_an_environment_that_does_not_repeat_itself_is_noticed(tmp_path, data, signal_at, monkeypatch):
    run = offline(tmp_path / "offline", data)
    monkeypatch.setattr(Walk, "jitter", 1e-3)
    signal_at(11)
    with pytest.raises(Stopped):
        go_online(tmp_path / "cut", data, run)
    signal_at(0)
    directory = only_run(tmp_path / "cut")
    played = load_checkpoint(directory)[0]["source"]["player"]
    assert len(played["actions"]), "the stop must fall into an episode"
    with pytest.raises(
        CheckpointError, match=r"^the environment does not come to the same state .*--allow-inexact"
    ):
        resume(directory, dataset=data)
    assert resume(directory, dataset=data, allow_inexact=True).steps == 20
    after = load_checkpoint(directory)[0]["source"]
    assert len(after["appended"]) == after["player"]["steps"] == 25


# What is refused


@pytest.mark.parametrize("algorithm", OFFLINE_ONLY)
def test_methods_that_cannot_go_on_online_say_why(tmp_path, algorithm):
    reason = load_algorithm(algorithm)[1].online
    assert isinstance(reason, str)
    with pytest.raises(ConfigError, match=f"{algorithm} cannot go on online: {reason}"):
        inherited([tmp_path], algorithm)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_that_cannot_be_gone_on_from_are_refused(tmp_path, data, signal_at):
    run = offline(tmp_path, data)
    with pytest.raises(ConfigError, match="is a run of td3_bc, not of iql"):
        inherited([run], "iql")
    online = go_online(tmp_path / "online", data, run)[0].directory
    with pytest.raises(ConfigError, match="is online already"):
        inherited([online], "td3_bc")
    with pytest.raises(ConfigError, match="the same seed"):
        inherited([run, run], "td3_bc")
    other = offline(tmp_path, data, seed=9, alpha=1.0)
    held = offline(tmp_path, data, seed=8)
    edit(held / "config.json", holdout=0.5)
    with pytest.raises(ConfigError, match="differ in holdout"):
        inherited([run, held], "td3_bc")
    with pytest.raises(ConfigError, match="differ in settings"):
        inherited([run, other], "td3_bc")
    signal_at(3)
    with pytest.raises(Stopped):
        offline(tmp_path / "half", data)
    with pytest.raises(ConfigError, match="not finished; first: offrl resume"):
        inherited([only_run(tmp_path / "half")], "td3_bc")
    with pytest.raises(FileNotFoundError):
        inherited([tmp_path / "nothing"], "td3_bc")


def other_data(data: OfflineDataset) -> OfflineDataset:
    fields = data.fields | {"rewards": data.fields["rewards"] + np.float32(1)}
    return OfflineDataset(fields, data.episode_starts, data.metadata)


def test_other_data_and_changed_files_are_refused(tmp_path, data):
    run = offline(tmp_path, data)
    with pytest.raises(CheckpointError, match=r"the data of .* changed since it was trained"):
        go_online(tmp_path / "online", other_data(data), run)
    with pytest.raises(ConfigError, match="trained from data in memory; pass the same dataset"):
        go_online(tmp_path / "online", None, run)
    weights = safetensors.torch.load_file(run / "policy.safetensors")
    weights["head.bias"] += 1
    safetensors.torch.save_file(weights, run / "policy.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'head.bias' of the policy in .* is not that of its checkpoint"
    ):
        go_online(tmp_path / "online", data, run)
    (run / "checkpoint.pt").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="does not have the checkpoint of its last update"):
        go_online(tmp_path / "online", data, run)
    assert not list((tmp_path / "online").glob("*")), "no folder is made for what cannot begin"


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"seed": 5}, {}, "seed is 5, but .* has seed 3: leave it out"),
        ({"rows": "qlearning"}, {}, "rows is qlearning, but .* was trained with exact"),
        ({"holdout": 0.2}, {}, "holdout is 0.2, but .* was trained with 0.0: it must stay"),
        ({}, {"discount": 0.9}, "discount is 0.9, but .* was trained with 0.99: it must stay"),
        ({}, {"normalize_observations": False}, "normalize_observations is False"),
        ({}, {"reward_scale": 2.0}, "reward_scale is 2.0"),
        ({}, {"hidden": 16}, "the settings do not fit the networks of"),
        ({"env": "Pendulum-v1"}, {}, "the data have O=2, A=1 but Pendulum-v1 has observations"),
        ({"env": "TestWide-v0"}, {}, "TestWide-v0 has another action box .action_low .-3.0"),
        ({"steps": 0}, {}, "steps must be 1 or more"),
        ({}, {"batch_size": 1}, "batch_size must be 2 or more online: half of a batch is played steps"),
    ],
)
def test_what_the_networks_rest_on_must_stay(tmp_path, data, options, settings, message):
    class Wide(Walk):
        action_space = gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float32)

    gymnasium.registry.pop("TestWide-v0", None)
    gymnasium.register("TestWide-v0", entry_point=Wide, max_episode_steps=HORIZON)
    run = offline(tmp_path, data)
    with pytest.raises(ConfigError, match=message):
        offrl.train(
            "td3_bc", data, from_run=run, progress=False, out=tmp_path / "online", **options, **settings
        )
    assert not (tmp_path / "online").exists()


def test_data_without_an_environment_need_one(tmp_path, data):
    facts = {"name": "walks", "action_low": [-2.0], "action_high": [2.0]}
    bare = OfflineDataset(data.fields, data.episode_starts, facts)
    run = offline(tmp_path, bare)
    with pytest.raises(ConfigError, match="going on online needs an environment: pass --env ID"):
        go_online(tmp_path / "online", bare, run)
    options, settings = inherited([run], "td3_bc")
    options = RunOptions(**vars(options) | {"out": tmp_path / "online", "steps": 2, "env": "TestWalk-v0"})
    assert fine_tune("td3_bc", settings, options, [run], PulledOnlineSettings(warmup_steps=1), dataset=bare)


@pytest.mark.parametrize(
    "value",
    [
        {"warmup_steps": -1},
        {"exploration_noise": -0.1},
        {"bc_end": 0.0},
        {"bc_end": 2.0},
        {"exploration_noise": math.nan},
    ],
)
def test_impossible_settings_online_are_refused(value):
    with pytest.raises(ConfigError, match=next(iter(value))):
        PulledOnlineSettings(**value)


@pytest.mark.parametrize("change", [{"online": None}, {"online": 3}, {"fine_tuned_from": {"run": 3}}])
def test_a_damaged_record_is_refused(tmp_path, data, change):
    out = go_online(tmp_path / "online", data, offline(tmp_path, data), steps=2)[0].directory
    edit(out / "config.json", **change)
    with pytest.raises(CheckpointError, match="is damaged"):
        RunDir(out)


# The doors, and how it is told


@pytest.fixture
def walk_npz(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
    np.savez(tmp_path / "walks.npz", **{name: data.fields[name] for name in names})
    small = ["--hidden", "8", "--batch-size", "8", "--eval-episodes", "2", "--steps", "8"]
    assert (
        main(
            [
                "train",
                "td3_bc",
                "--dataset",
                "walks.npz",
                "--env",
                "TestWalk-v0",
                *small,
                "-q",
                "--alpha",
                "1.5",
            ]
        )
        == 0
    )
    return only_run(tmp_path / "runs")


def test_the_command_goes_on_from_a_run_and_report_and_eval_say_so(walk_npz, tmp_path, capsys):
    run = str(walk_npz)
    online = ["train", "td3_bc", "--from", run, "--steps", "10", "--warmup-steps", "3", "--out", "online"]
    assert main(online) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(
        f"fine-tuning {walk_npz.resolve()} on TestWalk-v0: 3 steps of the offline policy"
    )
    out = only_run(tmp_path / "online")
    config = config_of(out)
    assert config["settings"]["alpha"] == 1.5
    assert config["online"] == {"warmup_steps": 3, "exploration_noise": 0.1, "bc_end": 0.5}
    assert config["fine_tuned_from"]["run"] == str(walk_npz.resolve())
    header = (out / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith(",online_return")
    tasks = group_runs([read_run(walk_npz), read_run(out)])
    assert [g.label for task in tasks for g in task.groups] == ["td3_bc", "td3_bc fine-tuning"]
    assert main(["eval", str(out), "--episodes", "2", "--env", "TestWalk-v0"]) == 0
    assert f"{out} (fine-tuning) on TestWalk-v0" in capsys.readouterr().out
    assert main(["report", str(out), "--out", "r.html"]) == 0
    assert "td3_bc fine-tuning" in Path("r.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0", "1"], "instead of --seeds name several runs after --from"),
        (["--preset", "antmaze-"], "leave --config and --preset out"),
        (["--from"], ""),
        (["--seed", "4"], "seed is 4, but"),
        (["--bc-end", "7"], "bc_end must be in"),
    ],
)
def test_the_command_refuses_in_one_line(walk_npz, capsys, more, message):
    assert main(["train", "td3_bc", "--from", str(walk_npz), *more]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_of_going_on_online_need_from(walk_npz, capsys):
    assert main(["train", "td3_bc", "--dataset", "walks.npz", "--bc-end", "0.9"]) == 1
    assert "options of going on online need --from RUN" in capsys.readouterr().err
    assert main(["train", "prdc", "--from", str(walk_npz)]) == 1
    assert "its nearest neighbours are looked up among the offline rows alone" in capsys.readouterr().err
    assert main(["train", "prdc", "--from", str(walk_npz), "--warmup-steps", "3"]) == 1
    assert "prdc cannot go on online: its nearest neighbours" in capsys.readouterr().err


def test_another_data_file_is_not_taken_for_one_that_changed(walk_npz, data, capsys):
    names = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
    np.savez("other.npz", **{name: other_data(data).fields[name] for name in names})
    assert main(["train", "td3_bc", "--from", str(walk_npz), "--dataset", "other.npz"]) == 1
    assert "other.npz does not hold the data that" in capsys.readouterr().err
    Path("other.npz").replace("walks.npz")
    assert main(["train", "td3_bc", "--from", str(walk_npz)]) == 1
    assert "changed since it was trained" in capsys.readouterr().err


def test_a_data_file_that_is_gone_is_refused(walk_npz, capsys):
    Path("walks.npz").unlink()
    assert main(["train", "td3_bc", "--from", str(walk_npz)]) == 1
    assert "walks.npz" in capsys.readouterr().err


def test_python_goes_on_from_a_run(walk_npz, tmp_path):
    result = offrl.train(
        "td3_bc", from_run=walk_npz, steps=6, warmup_steps=2, alpha=4.0, out="online", progress=False
    )
    config = config_of(result.directory)
    assert (config["steps"], config["settings"]["alpha"], config["settings"]["hidden"]) == (6, 4.0, 8)
    assert config["online"]["warmup_steps"] == 2
    for more in ({"preset": "antmaze-"}, {"seeds": [1, 2]}):
        with pytest.raises(ConfigError, match="leave preset and seeds out"):
            offrl.train("td3_bc", from_run=walk_npz, progress=False, **more)
    with pytest.raises(ConfigError, match="td3_bc has no setting 'warm_steps'"):
        offrl.train("td3_bc", from_run=walk_npz, progress=False, warm_steps=3)


def test_played_steps_make_a_poor_policy_better(tmp_path):
    """Inverted pendulum, data of random actions (6 steps an episode): some 30 steps offline, twice that online."""
    random_policy = RandomPolicy(4, 1, [-3.0], [3.0])
    swings = collect("InvertedPendulum-v5", random_policy, 2000, seed=0)
    small = {"hidden": 32, "batch_size": 64, "eval_every": 0, "progress": False, "out": tmp_path}
    before = offrl.train("td3_bc", swings, steps=1000, **small)
    online = {"progress": False, "eval_every": 0, "out": tmp_path / "online"}
    after = offrl.train("td3_bc", swings, from_run=before.directory, steps=1200, warmup_steps=500, **online)
    assert after.returns.mean() > 1.5 * before.returns.mean()


@pytest.mark.slow
def test_several_runs_go_on_in_processes_of_their_own(tmp_path, pendulum_npz, monkeypatch, capsys):
    monkeypatch.chdir(pendulum_npz.parent)
    small = ["--hidden", "8", "--batch-size", "8", "--eval-episodes", "1", "--eval-every", "0"]
    command = [
        "train",
        "td3_bc",
        "--dataset",
        "tiny.npz",
        "--env",
        "Pendulum-v1",
        *small,
        "--steps",
        "8",
        "-q",
    ]
    assert main([*command, "--seeds", "0", "1"]) == 0
    runs = sorted(str(path.parent) for path in Path("runs").glob("*/*/*/config.json"))
    online = ["train", "td3_bc", "--from", *runs, "--steps", "30", "--warmup-steps", "250", "--out", "online"]
    assert main(online) == 0
    assert "last return" in capsys.readouterr().out
    made = sorted(path.parent for path in Path("online").glob("*/*/*/final_returns.npz"))
    assert [config_of(path)["seed"] for path in made] == [0, 1]
    assert main([*online[:3], runs[1], *online[5:-1], "alone"]) == 0
    assert (only_run(Path("alone")) / "metrics.csv").read_bytes() == (made[1] / "metrics.csv").read_bytes()
