"""T4d: failures and what they tell, rewards as differences of returns of a frozen actor, and Retroformer on it."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.rollouts import Rollouts
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.retroformer import anchored
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task, task_for
from offrl.llm.tasks.grid import Grid
from offrl.llm.tasks.retry import Retry
from offrl.llm.text import PAD, Responses

METHOD = load_method("retroformer")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Walker:
    """Stands in for a trained actor: goes to the corner that its prompt names, else to the first or last one."""

    def __init__(self, grid, deaf=False):
        self.grid, self.deaf = grid, deaf
        self.bias = torch.zeros(len(grid.vocabulary))
        self.pad, self.ends = PAD, torch.tensor([2])
        self.head = torch.eye(len(grid.vocabulary))

    def begin(self, tokens, mask, copies):
        hint = tokens[:, 1] - self.grid.first
        hint = torch.where(tokens[:, 1] == self.grid.blank, torch.arange(len(tokens)) % 2 * 24, hint)
        self.target = hint * 0 if self.deaf else hint
        return self._towards(torch.full_like(hint, 12)), None

    def advance(self, state, tokens, seen=None):
        return self._towards((tokens.view(len(tokens), -1)[:, -1] - self.grid.first).clamp(0, 24))

    def narrow(self, state, rows):
        self.target = self.target[rows]

    def _towards(self, cell):
        down, right = self.target // 5 - cell // 5, self.target % 5 - cell % 5
        move = torch.where(down < 0, 0, torch.where(down > 0, 2, torch.where(right > 0, 1, 3)))
        return (
            30.0 * torch.nn.functional.one_hot(self.grid.first_move + move, len(self.grid.vocabulary)).float()
        )

    def requires_grad_(self, flag):
        return self

    def to(self, device):
        return self

    cpu = lambda self: self  # noqa: E731


def retry(deaf=False):
    grid = Grid("t4d-actor")
    return Retry(grid, Walker(grid, deaf))


def said(tokens):
    tokens = torch.as_tensor(tokens)[:, None]
    return Responses(tokens, tokens > 0, torch.zeros(tokens.shape))


def test_a_failure_shows_the_wrong_corner_and_where_the_goal_lies():
    task = retry()
    prompts = task.prompts(64, generator())
    relation = {(0, 1): "-", (0, 2): "|", (0, 3): "x", (3, 2): "-", (3, 1): "|", (3, 0): "x"}
    for tokens, mask, goal in zip(prompts.tokens, prompts.mask, prompts.ids % 4, strict=True):
        text = task.vocabulary.text(tokens[mask])
        corner = {"a": 0, "y": 3}[text[-2]]
        assert corner != int(goal)
        assert text[-1] == relation[corner, int(goal)]
    assert len((prompts.ids % 4).unique()) == 4
    assert prompts.mask[:, -1].all()


def test_the_reward_is_what_the_next_try_earns_with_the_hint():
    task = retry()
    prompts = task.prompts(32, generator())
    goal = prompts.ids % 4
    right = torch.tensor(task.hints)[1 + goal]
    assert (task.rewards(prompts, said(right))["difference"] == 1).all()
    assert task.success(prompts, said(right)).all()
    wrong = torch.tensor(task.hints)[1 + (goal + 1) % 4]
    assert (task.rewards(prompts, said(wrong))["difference"] == 0).all()
    without = task.rewards(prompts, said(torch.full_like(goal, task.grid.blank)))["difference"]
    assert 0 < float(without.mean()) < 1  # chance


def test_equal_responses_get_equal_rewards_again():
    task = retry()
    prompts = task.prompts(16, generator())
    hints = torch.tensor(task.hints)[torch.arange(16) % 5]
    first = task.rewards(prompts, said(hints))["difference"]
    assert torch.equal(task.rewards(prompts, said(hints))["difference"], first)


def test_a_perfect_hint_beats_trying_again_and_a_deaf_actor_takes_none():
    task = retry()

    class Oracle(Walker):
        """Reads corner and relation off the transcript."""

        def begin(self, tokens, mask, copies):
            corner = {0: 0, 4: 1, 20: 2, 24: 3}
            goals = []
            for row in tokens:
                shown = row[row != PAD].tolist()
                at, relation = corner[shown[-3] - task.grid.first], shown[-2] - task.grid.first - 25
                goals.append(1 + (at ^ [1, 2, 3][relation]))
            hints = torch.tensor(task.hints)[torch.tensor(goals)]
            return 30.0 * torch.nn.functional.one_hot(hints, len(self.grid.vocabulary)).float(), None

    found = task.measures(Oracle(task.grid))
    assert found["success_2"] == 1.0
    assert found["success_1"] < found["success_2_without"] < 0.6
    deaf = retry(deaf=True)
    heard = deaf.measures(Oracle(deaf.grid))
    assert heard["success_2"] == heard["success_2_without"] == heard["success_1"]


def test_only_failures_are_tried_again_so_that_success_never_falls():
    task, sizes = retry(), []

    def counted(goals, hints, generator, own=task.attempts):
        found = own(goals, hints, generator)
        sizes.append((len(goals), int((found.paid == 0).sum())))
        return found

    task.attempts = counted
    found = task.measures(load_model("tiny:dense", task, 0))
    (first, failed), (again, _), (hinted, _) = sizes
    assert 0 < failed < first == 512
    assert again == hinted == failed
    assert found["success_1"] == pytest.approx(1 - failed / first)
    assert found["success_1"] <= min(found["success_2"], found["success_2_without"])


def advantages(paid):
    """(N, G) rewards of the reflections on N failures -> what the method learns from."""
    estimator = METHOD.estimator(METHOD.config(), 1)
    ids = torch.arange(len(paid)).repeat_interleave(paid.shape[1])
    return estimator.advantages(Rollouts(rewards=paid.flatten(), group_ids=ids)).view(paid.shape)


def bandit(success, centred, count=20_000, group=4):
    """Mean and variance of the gradient on one logit, of reflections on failures of an actor that succeeds so often."""
    g = generator(3)
    p = torch.tensor([0.3, 0.7])
    drawn = (torch.rand(count, group, generator=g) < p[1]).long()
    paid = (torch.rand(count, group, generator=g) < torch.tensor(success)[drawn]).float()
    a = advantages(paid) if centred else paid
    each = (a * (drawn - p[1])).mean(dim=1) * (group / (group - 1) if centred else 1.0)
    return float(each.mean()), float(each.var())


def test_an_actor_that_ignores_reflections_teaches_nothing():
    """Bad luck alone: the next try is better whatever was said."""
    mean, variance = bandit([0.6, 0.6], centred=True)
    assert abs(mean) < 4 * (variance / 20_000) ** 0.5


def test_centring_changes_the_variance_but_not_the_mean():
    centred, less = bandit([0.6, 0.95], centred=True)
    raw, more = bandit([0.6, 0.95], centred=False)
    exact = 0.21 * (0.95 - 0.6)
    assert abs(centred - exact) < 0.004
    assert abs(raw - exact) < 0.006
    assert less < more


def test_an_oracle_is_learnt_with_the_analytic_gradient():
    """The actor succeeds iff token c is said: the gradient of its logit is p (1 - p)."""
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    total = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=2):
        paid = torch.tensor([float(a == 1) for a in draw], dtype=torch.float64)
        a = 2 * advantages(paid[None])[0]
        score = torch.eye(3, dtype=torch.float64)[list(draw)] - p.detach()
        total += p.detach()[list(draw)].prod() * (a[:, None] * score).mean(dim=0)
    torch.testing.assert_close(total[1], (p[1] * (1 - p[1])).detach(), atol=1e-12, rtol=0)


def test_selection_of_lucky_reflections_drifts_where_the_gradient_does_not():
    """All reflections on a hard failure are as good as each other; those on an easy one too. Imitating what was followed
    by a success moves the policy towards what happened to be said on the easy ones."""
    g = generator(4)
    said_easy = (torch.rand(4000, generator=g) < 0.9).long()  # on easy failures token 1 is said more often
    said_hard = (torch.rand(4000, generator=g) < 0.1).long()
    lucky = torch.cat(
        [said_easy[torch.rand(4000, generator=g) < 0.9], said_hard[torch.rand(4000, generator=g) < 0.1]]
    )
    before = float(torch.cat([said_easy, said_hard]).float().mean())
    assert abs(before - 0.5) < 0.02
    assert float(lucky.float().mean()) > 0.75  # drifts, though no token helps


def learner(task=None, **settings):
    made = task or retry()
    options = LLMOptions(task="t4d", actor="x", prompts=4, group=4, device="cpu", lr=1e-2)
    return Learner(METHOD, METHOD.config(**settings), made, load_model("tiny:dense", made, 0), options)


def test_the_coefficient_moves_towards_the_target_and_is_saved():
    made = learner(kl=0.1, target=10.0, horizon=100)
    values = [float(made.update()["kl_coefficient"]) for _ in range(3)]
    assert values[0] > values[1] > values[2]  # far below the target
    torch.testing.assert_close(torch.tensor(values[1]), torch.tensor(0.1 * (1 - 0.2 * 16 / 100)))
    tight = learner(kl=0.1, target=1e-9, horizon=100)
    risen = [float(tight.update()["kl_coefficient"]) for _ in range(3)]
    assert risen[2] > risen[1]
    other = learner(kl=0.1, target=10.0, horizon=100)
    other.load_state_dict(made.state_dict())
    assert float(other.update()["kl_coefficient"]) == float(made.update()["kl_coefficient"])


def test_the_kl_is_estimated_from_samples_of_the_policy():
    """Without bias for KL(pi || reference): its mean over what the policy samples is the KL of two categoricals."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    each = anchored(policy.log(), reference.log(), torch.full((3,), 0.5).double())
    torch.testing.assert_close((policy * each).sum(), 0.5 * (policy * (policy / reference).log()).sum())


def test_a_step_is_held_by_the_coefficient_from_before_it():
    made = learner(kl=0.1, target=10.0, horizon=100)
    used = []
    masked = made.companion.masked

    def seen(batch):
        batch, found = masked(batch)
        used.append(float(batch.factors.max()))
        return batch, found

    made.companion.masked = seen
    told = [float(made.update()["kl_coefficient"]) for _ in range(2)]
    assert used == pytest.approx(told)
    assert used[0] == pytest.approx(0.1)
    assert made.companion.coefficient < used[1]


def test_only_the_reflections_have_gradients_and_the_actor_none():
    grid = Grid("t4d-actor")
    actor = load_model("tiny:dense", grid, 1)
    made = learner(Retry(grid, actor))
    before = [p.detach().clone() for p in actor.parameters()]
    batch, _ = made._collect()
    assert batch.mask.sum() == 16  # one token each
    made.update()
    assert all(p.grad is None for p in actor.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, actor.parameters(), strict=True))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="t4d needs an actor"):
        load_task("t4d")
    with pytest.raises(ConfigError, match="leave --actor out"):
        task_for(LLMOptions(task="t1", actor="x"))
    with pytest.raises(ConfigError, match="kl and target must be positive"):
        METHOD.config(kl=0.0)
