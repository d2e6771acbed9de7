"""Methods: each file's gradient is that of its formula, written out row by row; names, parts and headers agree."""

import ast
import dataclasses
import math
from pathlib import Path

import pytest
import torch

import offrl.llm.methods
from offrl.errors import ConfigError
from offrl.estimators.aggregation import row_mean, row_sum, token_mean
from offrl.estimators.group_losses import GroupEstimator
from offrl.estimators.groups import whole_groups
from offrl.estimators.rollouts import Rollouts, count
from offrl.llm.method import TextRollouts
from offrl.llm.methods import METHODS, load_method

FILES = sorted(Path(offrl.llm.methods.__file__).parent.glob("[!_]*.py"))
LENGTHS, IDS = [3, 1, 4, 2, 4, 1, 3], [7, 2, 7, 2, 2, 7, 2]  # ragged, groups of 3 and 4, not sorted
DEMO = [False, False, True, False, True, False, False]
LIMIT = 5


def ragged(seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    old = -torch.rand(shape, generator=g, dtype=torch.float64) - 0.1
    log_probs = (old + 0.4 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    rewards = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    batch = TextRollouts(
        cut=torch.tensor(DEMO), answer_ids=torch.tensor(IDS) % 3, baseline_weights=mask.sum(1).double(),
        prompt_tokens=mask.long(), prompt_mask=mask, tokens=mask.long(), limits=mask.sum(1),
        mask=mask, old_log_probs=old, rollout_log_probs=old, ref_log_probs=0.9 * old, rewards=rewards, group_ids=torch.tensor(IDS),
        step_ids=torch.arange(shape[1]).where(mask, -1), entropies=-old, vines=torch.tensor(DEMO), set_advantages=rewards[:, None],
        corridor=torch.tensor([[0.2, 0.6, 1.5]]).expand(len(LENGTHS), 3), demo=torch.tensor(DEMO), factors=mask.double(), prompt_ids=torch.tensor(IDS), components=torch.stack([rewards, rewards.flip(0)], dim=1),
        baseline_rewards=torch.tensor([0.3, 0.1, 0.3, 0.1, 0.1, 0.3, 0.1], dtype=torch.float64),
    )  # fmt: skip
    return log_probs, batch


def gradient(loss, log_probs):
    return torch.autograd.grad(loss, log_probs)[0]


def others(i):
    return [j for j in range(len(IDS)) if IDS[j] == IDS[i]]


def mean(values):
    return sum(values) / len(values)


def grpo_advantage(rewards, i):
    group = [rewards[j] for j in others(i)]
    m = mean(group)
    std = math.sqrt(sum((r - m) ** 2 for r in group) / (len(group) - 1))
    return (rewards[i] - m) / (std + 1e-6)


def whitened(values):
    """One value a row, each counted once a token."""
    tokens = [v for v, n in zip(values, LENGTHS, strict=True) for _ in range(n)]
    m = mean(tokens)
    std = math.sqrt(sum((v - m) ** 2 for v in tokens) / (len(tokens) - 1))
    return [(v - m) / (std + 1e-8) for v in values]


def clipped(r, a, low=0.2, high=0.2):
    return torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)


def advantages(name, rewards, baseline):
    n = range(len(IDS))
    if name == "sft":
        return [1.0 for _ in n]
    if name == "reinforce":
        return [rewards[i] - mean(rewards) for i in n]
    if name == "rloo":
        return [rewards[i] - mean([rewards[j] for j in others(i) if j != i]) for i in n]
    if name == "remax":
        return [rewards[i] - baseline[i] for i in n]
    if name == "reinforce_plus_plus":
        return whitened(rewards)
    if name in ("dr_grpo", "gpg"):
        return [rewards[i] - mean([rewards[j] for j in others(i)]) for i in n]
    return [grpo_advantage(rewards, i) for i in n]


def row_value(name, a, new, old, demo):
    """What is maximised of a row, one number a token, from (L,) log-probabilities."""
    r = (new - old).exp()
    if name in ("sft", "reinforce", "rloo", "gpg"):
        return a * new
    if name == "luffy" and demo:
        return new.exp() / (new.exp() + 0.1) * a
    if name == "dapo":
        return clipped(r, a, high=0.28)
    if name == "gspo":
        return clipped((new - old).mean().exp(), a, 3e-4, 4e-4).expand(len(new))
    if name == "cispo":
        return r.clamp(max=1.28).detach() * a * new
    if name == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return 4 / tau * (tau * (r - 1)).sigmoid() * a
    if name == "gmpo":
        sign = math.copysign(1.0, a)
        d = new - old
        d = torch.minimum(sign * d, sign * d.clamp(-0.4, 0.4)) * sign
        return (d.mean().exp() * a).expand(len(new))
    return clipped(r, a)


OWN = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "methods").glob("test_*.py")}
"""Methods with a file of tests of their own."""
BY_ROW = ("grpo", "gspo", "sapo", "gmpo")
BY_SUM = ("reinforce", "rloo")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ppo" and name not in OWN])
def test_the_gradient_is_that_of_the_formula(name, seed):
    log_probs, batch = ragged(seed)
    method = load_method(name)
    estimator = method.estimator(method.config(), LIMIT)
    rewards, baseline = batch.rewards.tolist(), batch.baseline_rewards.tolist()
    if method.kl == "step-reward":
        last = torch.zeros_like(batch.mask, dtype=torch.float64)
        last[range(len(LENGTHS)), [n - 1 for n in LENGTHS]] = batch.rewards
        batch = batch.replace(rewards=last)
    found = gradient(estimator.loss(log_probs, estimator.prepare(batch)), log_probs)

    total = torch.zeros((), dtype=torch.float64)
    for i, (n, a) in enumerate(zip(LENGTHS, advantages(name, rewards, baseline), strict=True)):
        value = row_value(name, a, log_probs[i, :n], batch.old_log_probs[i, :n], DEMO[i]).sum()
        if name in BY_ROW:
            total = total + value / n / len(LENGTHS)
        elif name in BY_SUM:
            total = total + value / len(LENGTHS)
        elif name == "dr_grpo":
            total = total + value / (len(LENGTHS) * LIMIT)
        else:
            total = total + value / sum(LENGTHS)
    assert found.abs().sum() > 0.01
    torch.testing.assert_close(found, gradient(-total, log_probs), atol=1e-9, rtol=1e-6)


def test_ppo_is_gae_whitened_and_clipped():
    log_probs, batch = ragged()
    method = load_method("ppo")
    estimator = method.estimator(method.config(lam=0.9, value=0.3), LIMIT)
    values = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    predicted = (values + 0.1).requires_grad_()
    rewards = torch.zeros_like(values)
    following = torch.zeros_like(values)
    plain, returns = [], torch.zeros_like(values)
    for i, n in enumerate(LENGTHS):
        rewards[i, n - 1] = batch.rewards[i]
        following[i, : n - 1] = values[i, 1:n]
        a = 0.0
        for t in reversed(range(n)):
            a = rewards[i, t] + following[i, t] - values[i, t] + (0.9 * a if t + 1 < n else 0.0)
            plain.append((i, t, float(a)))
            returns[i, t] = a + values[i, t]
    m = mean([a for *_, a in plain])
    std = math.sqrt(sum((a - m) ** 2 for *_, a in plain) / (len(plain) - 1))
    total = torch.zeros((), dtype=torch.float64)
    for i, t, a in plain:
        r = (log_probs[i, t] - batch.old_log_probs[i, t]).exp()
        total = total + clipped(r, (a - m) / (std + 1e-8))
        total = total - 0.3 * (predicted[i, t] - returns[i, t]) ** 2
    batch = batch.replace(rewards=rewards, values=values, next_values=following, returns=returns)
    loss = estimator.loss(log_probs, estimator.prepare(batch), predicted_values=predicted)
    wrt = (log_probs, predicted)
    found, want = torch.autograd.grad(loss, wrt), torch.autograd.grad(-total / sum(LENGTHS), wrt)
    torch.testing.assert_close(found, want, atol=1e-9, rtol=1e-6)


def test_reinforce_plus_plus_can_centre_in_groups_first():
    _, batch = ragged()
    method = load_method("reinforce_plus_plus")
    estimator = method.estimator(method.config(group_baseline=True), LIMIT)
    rewards = batch.rewards.tolist()
    last = torch.zeros_like(batch.mask, dtype=torch.float64)
    last[range(len(LENGTHS)), [n - 1 for n in LENGTHS]] = batch.rewards
    found = estimator.advantages(batch.replace(rewards=last))
    want = whitened([rewards[i] - mean([rewards[j] for j in others(i)]) for i in range(len(IDS))])
    torch.testing.assert_close(found[:, 0], torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("group_baseline", [False, True])
def test_reinforce_plus_plus_learns_nothing_from_equal_rewards(group_baseline):
    """Of 0.7 each, whose float32 mean is not 0.7; groups of 3, 5 and 8 have three such errors."""
    method = load_method("reinforce_plus_plus")
    estimator = method.estimator(method.config(group_baseline=group_baseline), LIMIT)
    mask = torch.arange(4) < torch.arange(16)[:, None] % 4 + 1
    last = torch.arange(4) == torch.arange(16)[:, None] % 4
    ids = torch.tensor([0] * 3 + [1] * 5 + [2] * 8)
    batch = Rollouts(mask=mask, rewards=0.7 * last, group_ids=ids)
    assert (estimator.advantages(batch)[mask] == 0).all()


@pytest.mark.parametrize("reward", [0.1, 0.7])
@pytest.mark.parametrize("name", ["reinforce", "copo", "oblr_po"])
def test_equal_rewards_have_no_advantage_over_each_other(name, reward):
    """Their float32 mean is another number, and so are those of groups of 3, 5 and 8."""
    ids = torch.tensor([0] * 3 + [1] * 5 + [2] * 8)
    rewards = torch.full((16,), reward)
    batch = ragged()[1].rows(torch.arange(16) % 7).replace(rewards=rewards, group_ids=ids)
    batch = batch.replace(baseline_weights=torch.rand(16, generator=torch.Generator().manual_seed(0)))
    method = load_method(name)
    assert (method.estimator(method.config(), LIMIT).advantages(batch) == 0).all()


def test_reinforce_plus_plus_centres_outcomes_and_keeps_what_comes_later():
    """With a KL in the rewards of tokens: of each return the group's mean of whole returns is taken."""
    _, batch = ragged()
    made = load_method("reinforce_plus_plus")
    batch = batch.replace(rewards=batch.old_log_probs.where(batch.mask, 0.0))
    found = made.estimator(made.config(group_baseline=True), LIMIT).advantages(batch)[batch.mask]
    to_go = batch.rewards.flip(1).cumsum(1).flip(1)
    centres = torch.stack([to_go[others(i), 0].mean() for i in range(len(IDS))])
    want = (to_go - centres[:, None])[batch.mask]
    torch.testing.assert_close(found, (want - want.mean()) / (want.std() + 1e-8))


@pytest.mark.parametrize("counts", ["unequal", "rewarded"])
def test_gpg_scales_by_the_rows_that_count(counts):
    """A group of equal rewards; rewards of 1/4, -1 and 0."""
    _, batch = ragged()
    rewards = torch.tensor([0.5, 0.25, 0.5, 0.0, -1.0, 0.5, 0.0]).double()
    made = load_method("gpg")
    found = made.estimator(made.config(counts=counts), LIMIT).advantages(batch.replace(rewards=rewards))
    want = [r - mean([rewards[j].item() for j in others(i)]) for i, r in enumerate(rewards.tolist())]
    scale = {"unequal": 7 / 4, "rewarded": 7 / 5}[counts]
    torch.testing.assert_close(found, scale * torch.tensor(want, dtype=torch.float64))


def test_cispo_may_have_a_floor():
    log_probs, batch = ragged()
    method = load_method("cispo")
    estimator = method.estimator(method.config(floor=0.1, clip_high=0.15), LIMIT)
    batch = estimator.prepare(batch)
    ratio = (log_probs.detach() - batch.old_log_probs).exp()
    want = (ratio.clamp(0.9, 1.15) * batch.advantages[:, None]).where(batch.mask, 0.0)
    torch.testing.assert_close(estimator.weights(log_probs, batch), want)
    assert (ratio[batch.mask] < 0.9).any()


def test_hpt_shares_by_the_size_of_each_group():
    _, batch = ragged()
    method = load_method("hpt")
    found = method.estimator(method.config(), LIMIT).advantages(batch)
    rewards = batch.rewards.tolist()
    want = [(r - mean([rewards[j] for j in others(i)])) / len(others(i)) for i, r in enumerate(rewards)]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))


IN_THE_REWARD = {
    "reinforce": "reward", "rloo": "reward", "remax": "reward", "p3o": "reward",
    "reinforce_plus_plus": "step-reward", "ppo": "step-reward", "polychromic": "step-reward",
}  # fmt: skip
OF_THEIR_OWN = {"copg", "retroformer"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - OF_THEIR_OWN))
def test_the_kl_stands_in_one_place(name):
    """In the reward, or as k3 in the loss: never in both, never in none."""
    method = load_method(name)
    assert method.kl == IN_THE_REWARD.get(name, "loss")
    given = method.estimator(method.config(kl=0.3), LIMIT).regularizers
    found = [(part.name, weight) for part, weight in given if part.name in ("k1", "k2", "k3")]
    assert found == ([("k3", 0.3)] if method.kl == "loss" else [])


SHEETS = {
    "ppo": {"lam": 0.95, "clip_low": 0.2, "clip_high": 0.2},
    "grpo": {"clip_low": 0.2, "clip_high": 0.2},
    "dapo": {"clip_low": 0.2, "clip_high": 0.28},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "sapo": {"tau_positive": 1.0, "tau_negative": 1.05},
    "luffy": {"gamma": 0.1},
    "hpt": {"gate": 0, "sft": 1.0},
    "minirl": {"clip_low": 0.2, "clip_high": 0.27, "cap": 5.0, "replay": "none"},
    "pacs": {"beta": 1.0, "balance": True},
    "adora": {"mode": "amplify", "criterion": "both", "hard": 0.5},
    "oblr_po": {"proxy": "energy", "leave_one_out": True, "adapt": True, "decay": 0.9, "floor": 0.1},
    "capo": {"base": "grpo", "tau_f": 1e-4, "tau_h": 0.01, "optimizer": "adam", "top_k": 50},
    "d3s": {"rows_first": 0.25, "rows_last": 1.0, "tokens_first": 0.1, "tokens_last": 0.5, "across": True},
    "copo": {"blend": "soft-with-zero", "steepness": 5.0, "bits": 1.0, "consistency": False},
}
"""What the papers or their code took; no KL and no entropy bonus."""


@pytest.mark.parametrize("name", SHEETS)
def test_defaults_are_the_published_ones(name):
    settings = dataclasses.asdict(load_method(name).config())
    assert {key: settings[key] for key in SHEETS[name]} == SHEETS[name]
    assert (settings["kl"], settings["entropy"]) == (0.0, 0.0)


def config_of(name, **settings):
    """Settings that rewards of up to 2 fit."""
    return load_method(name).config(**settings | ({"high": 2.0} if name == "beta_norm" else {}))


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_add_up_under_global_counts(name):
    log_probs, batch = ragged()
    method = load_method(name)
    if name in ("ppo", "polychromic"):
        x = batch.old_log_probs
        batch = batch.replace(values=x, next_values=x, returns=x, rewards=x)
    if method.kl == "step-reward" and batch.values is None:
        batch = batch.replace(rewards=batch.old_log_probs)
    estimator = method.estimator(config_of(name, entropy=0.1), LIMIT)
    batch = estimator.prepare(batch)
    extra = {"entropy": log_probs, "predicted_values": log_probs}
    whole = gradient(estimator.loss(log_probs, batch, **extra), log_probs)
    counts, parts = count(batch.mask, batch.group_ids), torch.zeros_like(whole)
    for rows in whole_groups(batch.group_ids, 4) if method.coupled else torch.arange(len(IDS)).split(2):
        pieces = {key: value[rows] for key, value in extra.items()}
        parts += gradient(estimator.loss(log_probs[rows], batch.rows(rows), counts, **pieces), log_probs)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["capo", *(n for n in METHODS if load_method(n).grouped and not load_method(n).coupled)]
)
def test_groups_are_found_by_id(name):
    _, batch = ragged()
    estimator = load_method(name).estimator(config_of(name), LIMIT)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    torch.testing.assert_close(estimator.advantages(batch.rows(order)), estimator.advantages(batch)[order])


@pytest.mark.parametrize("name", METHODS)
def test_negative_coefficients_and_bounds_are_refused(name):
    config = load_method(name).config
    known = {field.name for field in dataclasses.fields(config)}
    assert "kl" in known
    for setting in known & {"kl", "clip", "clip_low", "clip_high"}:
        for wrong in (-0.1, float("nan")):
            with pytest.raises(ConfigError, match=f"{setting} "):
                config(**{setting: wrong})
    config()


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("sft", {"noise": 1.5}, "noise must be within 0 and 1"),
        ("sft", {"noise": -0.1}, "noise must be within 0 and 1"),
        ("ppo", {"lam": 1.1}, "lam must be within 0 and 1"),
        ("ppo", {"value": -0.1}, "value must be 0 or more"),
        ("polychromic", {"kl_old": -0.1}, "kl_old must be 0 or more"),
        ("sapo", {"tau_positive": 0.0}, "tau_positive must be positive"),
        ("sapo", {"tau_negative": -1.0}, "tau_negative must be positive"),
        ("minirl", {"cap": -1.0}, "cap must be positive"),
        ("beta_norm", {"dual_clip": 0.0}, "dual_clip must be positive"),
        ("cispo", {"floor": -0.1}, "floor must be from 0 to below 1"),
        ("cispo", {"floor": 1.0}, "floor must be from 0 to below 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(name, given, says):
    with pytest.raises(ConfigError, match=says):
        load_method(name).config(**given)


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_luffy_refuses_a_gamma_at_which_demonstrations_teach_nothing(gamma):
    with pytest.raises(ConfigError, match="gamma must be positive"):
        load_method("luffy").config(gamma=gamma)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_tells_the_parts(name):
    method, entry = load_method(name), METHODS[name]
    estimator = method.estimator(method.config(), LIMIT)
    if isinstance(estimator, GroupEstimator):
        assert entry.advantage == f"{estimator.part.name} (a loss)"
        assert (entry.denominator, entry.mask, entry.aggregation) == ("-", "-", f"mean of {estimator.per}")
        return
    assert ", ".join(part.name for part in estimator.advantage) == entry.advantage
    assert estimator.denominator.name == entry.denominator
    assert (", ".join(part.name for part in estimator.masks) or "-") == entry.mask
    known = {token_mean: "token-mean", row_mean: "seq-mean-token-mean", row_sum: "seq-mean-token-sum"}
    assert known.get(estimator.aggregate, "fixed-length") == entry.aggregation


def test_every_file_is_listed_and_imports_no_other_method():
    assert sorted(METHODS) == [path.stem for path in FILES]
    for path in FILES:
        text = path.read_text()
        assert "offrl.llm.methods" not in text, path
        doc = ast.get_docstring(ast.parse(text))
        assert ("a reconstruction" in doc) == (METHODS[path.stem].status == "reconstruction"), path
        assert 0 < doc.index("\n    ") < doc.index("\nSource: ") < doc.index("\nDepartures: "), path
        assert METHODS[path.stem].source.split()[0] in doc or path.stem == "reinforce", path


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        load_method("gprpo")
