"""``offrl diagnose`` measures what is known: a learner whose critics are formulas, in an environment without chance."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import offrl
from offrl.cli import main
from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.data.split import split_episodes
from offrl.diagnose import DiagnoseOptions, diagnose
from offrl.errors import CheckpointError, ConfigError, DatasetError
from offrl.evaluation.diagnostics import read_diagnostics, read_fqe
from offrl.evaluation.runs import read_run
from offrl.training.runner import RunOptions, make_settings, prepare, start_stack

ACTION = 0.5
METHOD = '''
from dataclasses import dataclass
import torch
from offrl.nn.policy import DeterministicPolicy
from offrl.training.problem import Algorithm

@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    batch_size: int = 4
    """Rows."""
    discount: float = 0.5
    """Discount."""
    reward_scale: float = 10.0
    """Scale."""
    reward_shift: float = 1.0
    """Shift."""
    normalize_observations: bool = True
    """Whether."""

class Known:
    """Critics (20 + s + a) and (30 + s + a), 100 more for each seed after the first; s is normalized; pi = 0.5."""

    metrics = ("loss",)

    def __init__(self, problem, config):
        self.normalizer, self.seeds, self.rows = problem.normalizer, len(problem.seeds), len(problem.rewards)
        self.moved = torch.zeros(1)

    def update(self, batch):
        self.moved += 1
        return {"loss": torch.zeros(self.seeds)}

    def policy(self, seed=0):
        layers = [(torch.zeros(2, 1), torch.zeros(2)), (torch.zeros(1, 2), torch.full((1,), 0.54930614))]
        return DeterministicPolicy.from_params(
            layers, torch.full((1,), -1.0), torch.full((1,), 1.0), self.normalizer.mean, self.normalizer.std
        )

    def q_values(self, observations, actions):
        base = observations[:, None, :, 0] + actions[:, None, :, 0]
        offset = torch.arange(self.seeds)[:, None, None] * 100.0
        return base + torch.tensor([20.0, 30.0])[None, :, None] + offset

    def state_dict(self):
        return {"moved": self.moved}

    def load_state_dict(self, state):
        self.moved = state["moved"]

ALGORITHM = Algorithm(Config, Known)
'''


class Line(gymnasium.Env):
    """Three steps, each pays the action; the observation is the number of steps so far."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.steps], np.float32), float(action[0]), self.steps == 3, False, {}


gymnasium.register("DiagnosedLine-v0", entry_point=Line, max_episode_steps=50)
gymnasium.register("DiagnosedCut-v0", entry_point=Line, max_episode_steps=2)


def line_file(path: Path, episodes=20, seed=0) -> Path:
    """Episodes of the line with random actions; episode e pays e more for each step."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (3 * episodes, 1)).astype(np.float32)
    step = np.arange(3 * episodes) % 3
    np.savez(
        path,
        observations=step[:, None].astype(np.float32),
        actions=actions,
        rewards=(actions[:, 0] + np.repeat(np.arange(episodes), 3)).astype(np.float32),
        terminated=step == 2,
        truncated=np.zeros(3 * episodes, dtype=bool),
        next_observations=(step + 1)[:, None].astype(np.float32),
    )
    return path


@pytest.fixture
def known(tmp_path):
    """A function that trains the known learner; returns the run directory."""
    (tmp_path / "known.py").write_text(METHOD)
    data = line_file(tmp_path / "line.npz")

    def run(env="DiagnosedLine-v0", **options) -> Path:
        fixed = {"steps": 3, "env": env, "out": tmp_path / "runs", "eval_episodes": 1, "progress": False}
        return offrl.train(str(tmp_path / "known.py"), str(data), **fixed | options).directory

    return run


def expected_td(data: OfflineDataset, fitted: OfflineDataset, discount=0.5) -> float:
    """From the formulas: y = 10 r + 1 + 0.5 (1 - d) (20 + s' + 0.5)."""
    f, states = data.fields, fitted.fields["observations"][:, 0]
    mean, std = states.mean(), states.std() + 1e-3
    s, s2 = ((f[name][:, 0] - mean) / std for name in ("observations", "next_observations"))
    target = 10 * f["rewards"] + 1 + discount * (1 - f["terminated"]) * (20 + s2 + ACTION)
    q = np.stack([20 + s + f["actions"][:, 0], 30 + s + f["actions"][:, 0]])
    return float(np.sqrt(np.mean((q - target) ** 2)))


def test_every_number_of_a_known_learner(known):
    """Three steps at 10 * 0.5 + 1 = 6 are worth 6 + 3 + 1.5 = 10.5 in the critics' unit, 0.875 in the environment's."""
    directory = known()
    data = load_dataset(str(directory.parents[3] / "line.npz"))
    found = diagnose(directory, DiagnoseOptions(episodes=4))
    states = data.fields["observations"][:, 0]
    start = -states.mean() / (states.std() + 1e-3)
    np.testing.assert_allclose(found.q, 20 + start + ACTION, rtol=1e-5)
    np.testing.assert_allclose(found.q_mean, 25 + start + ACTION, rtol=1e-5)
    np.testing.assert_allclose(found.returns, 10.5, rtol=1e-5)
    assert found.discounted_return == pytest.approx(0.875, rel=1e-5)
    assert (found.critics, found.played_episodes, found.step, found.discount) == (2, 4, 3, 0.5)
    assert (found.tail_weight, found.visited_states) == (0.0, 12)
    assert found.td_error == pytest.approx(expected_td(data, data), rel=1e-4)
    assert found.held_out_td_error is found.held_out is None
    actions = data.fields["actions"][:, 0]
    assert found.action_distance == pytest.approx(np.abs(ACTION - actions).mean(), rel=1e-4)
    assert 0 < found.nearest_action_distance < found.action_distance
    assert found.rows == 60


def test_a_time_limit_leaves_a_tail(known):
    """Two of three steps: 6 + 3 + a quarter of Q at s = 2; a quarter was not seen."""
    directory = known("DiagnosedCut-v0")
    data = load_dataset(str(directory.parents[3] / "line.npz"))
    states = data.fields["observations"][:, 0]
    last = (2 - states.mean()) / (states.std() + 1e-3)
    found = diagnose(directory, DiagnoseOptions(episodes=2))
    assert found.tail_weight == pytest.approx(0.25)
    np.testing.assert_allclose(found.returns, 9 + 0.25 * (20 + last + ACTION), rtol=1e-5)
    assert found.discounted_return == pytest.approx(0.75, rel=1e-5)


def test_held_out_episodes_are_neither_trained_on_nor_normalized_by(known):
    directory = known(holdout=0.25)
    data = load_dataset(str(directory.parents[3] / "line.npz"))
    fitted, unseen = split_episodes(data, 0.25)
    found = diagnose(directory, DiagnoseOptions(episodes=0))
    assert found.td_error == pytest.approx(expected_td(fitted, fitted), rel=1e-4)
    assert found.held_out_td_error == pytest.approx(expected_td(unseen, fitted), rel=1e-4)
    assert found.held_out == "5 episodes of its data"
    assert found.rows == 45
    assert (found.q, found.discounted_return, found.played_episodes) == ([], None, 0)
    assert read_run(directory).config["holdout"] == 0.25


def test_training_sees_no_row_that_is_held_out(known, tmp_path):
    """Nor does a resumed run: both build their batches from config.json."""
    known()  # writes method and data
    file, data = str(tmp_path / "known.py"), str(tmp_path / "line.npz")
    options = RunOptions(dataset=data, env="DiagnosedLine-v0", holdout=0.25)
    _, source = prepare(file, make_settings(file, {}), options, (0,)).build((0,))
    fitted, unseen = split_episodes(load_dataset(data), 0.25)
    assert len(source) == fitted.num_steps == 45
    rewards = {round(float(r), 3) for r in source.table[:, 2]}
    for part, inside in ((fitted, True), (unseen, False)):
        learned = {round(float(10 * r + 1), 3) for r in part.fields["rewards"]}
        assert (learned <= rewards) is inside
        assert bool(learned & rewards) is inside


def test_other_data_may_be_the_held_out_ones(known, tmp_path):
    directory = known()
    data = load_dataset(str(tmp_path / "line.npz"))
    other = load_dataset(str(line_file(tmp_path / "fresh.npz", 7, seed=1)))
    found = diagnose(directory, DiagnoseOptions(episodes=0), other)
    assert found.held_out_td_error == pytest.approx(expected_td(other, data), rel=1e-4)
    assert found.held_out == "fresh"
    with pytest.raises(DatasetError, match="was trained on these data"):
        diagnose(directory, DiagnoseOptions(episodes=0), data)
    wide = OfflineDataset.from_arrays(np.zeros((2, 3)), np.zeros((2, 1)), [0, 0], [1, 1])
    with pytest.raises(DatasetError, match="O=3"):
        diagnose(directory, DiagnoseOptions(episodes=0), wide)


def test_each_run_of_a_stack_is_its_own(known, tmp_path):
    """The second critics are 100 above the first ones."""
    alone = diagnose(known(), DiagnoseOptions(episodes=1))
    file = str(tmp_path / "known.py")
    options = RunOptions(
        dataset=str(tmp_path / "line.npz"),
        env="DiagnosedLine-v0",
        steps=3,
        eval_episodes=1,
        out=tmp_path / "stack",
    )
    runs = start_stack(file, make_settings(file, {}), options, (4, 5))
    first, second = (diagnose(run.directory, DiagnoseOptions(episodes=1)) for run in runs)
    assert (first.q, first.td_error) == (alone.q, alone.td_error)
    assert second.q[0] == pytest.approx(first.q[0] + 100)
    assert second.critics == 2


def test_large_data_are_sampled(known, monkeypatch):
    import offrl.diagnose as module

    directory = known()
    whole = diagnose(directory, DiagnoseOptions(episodes=0))
    monkeypatch.setattr(module, "ROWS", 30)
    one, again, other = (diagnose(directory, DiagnoseOptions(episodes=0, seed=s)) for s in (1, 1, 2))
    assert (one.rows, one.td_error) == (30, again.td_error)
    assert one.td_error != other.td_error
    assert one.td_error == pytest.approx(whole.td_error, rel=0.3)


def test_what_changed_since_is_refused(known, tmp_path):
    directory = known()
    line_file(tmp_path / "line.npz", seed=9)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        diagnose(directory)
    line_file(tmp_path / "line.npz")
    (tmp_path / "known.py").write_text(METHOD + "\n# edited\n")
    with pytest.raises(CheckpointError, match="was edited"):
        diagnose(directory)
    (tmp_path / "known.py").write_text(METHOD)
    for file in directory.glob("checkpoint*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        diagnose(directory)


def test_data_in_memory_are_refused(pendulum, tmp_path):
    run = offrl.train("bc", pendulum, steps=2, hidden=4, out=tmp_path, eval_episodes=1, progress=False)
    with pytest.raises(ConfigError, match="data in memory"):
        diagnose(run.directory)


@pytest.mark.parametrize("wrong", [{"episodes": -1}, {"seed": -1}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DiagnoseOptions(**wrong)


def test_the_command_writes_what_the_report_shows(tmp_path, pendulum_npz, capsys):
    words = [
        "--dataset",
        str(pendulum_npz),
        "--steps",
        "4",
        "--hidden",
        "8",
        "--out",
        str(tmp_path / "runs"),
        "-q",
    ]
    for method in ("td3_bc", "bc"):
        assert main(["train", method, *words, "--env", "Pendulum-v1", "--eval-episodes", "1"]) == 0
    runs = sorted((tmp_path / "runs").glob("*/*/*"))
    assert main(["diagnose", str(tmp_path / "runs"), "--episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "no critic" in out
    assert "overestimation" in out
    assert "held out (nothing was: --holdout, --held-out)" in out
    assert "of the value unseen" in out  # 0.99^200 is 13 %
    assert read_diagnostics(runs[1]).critics == 2
    assert main(["diagnose", str(runs[0]), "--episodes", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["run"], record["critics"], record["q"]) == (str(runs[0]), 0, [])
    assert main(["fqe", str(runs[1]), "--dataset", str(pendulum_npz), "--steps", "5", "--hidden", "8"]) == 0
    assert f"wrote {runs[1] / 'fqe.json'}" in capsys.readouterr().err
    assert (read_fqe(runs[1]).step, read_fqe(runs[1]).fitted_steps) == (4, 5)
    config = runs[0] / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"rows": "online"}))
    assert (
        main(["diagnose", str(tmp_path / "runs"), "--episodes", "0", "--json"]) == 1
    )  # the other one is measured
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == str(runs[1])
    assert f"{runs[0]}: " in err
    assert "learned in an environment" in err
    assert main(["diagnose", str(runs[0]), "--episodes", "0"]) == 1
    config.write_text(whole)
    capsys.readouterr()
    page = tmp_path / "r.html"
    assert main(["report", str(tmp_path / "runs"), "--out", str(page)]) == 0
    assert "<h2>Beyond return</h2>" in page.read_text()
    assert main(["diagnose"]) == 2
    assert "name at least one run directory" in capsys.readouterr().err


def test_a_run_that_learned_in_an_environment_has_no_data(pendulum, tmp_path):
    run = offrl.train("bc", pendulum, steps=2, hidden=4, out=tmp_path, eval_episodes=1, progress=False)
    path = run.directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": "online"}))
    with pytest.raises(ConfigError, match="learned in an environment: it has no data"):
        diagnose(run.directory)
