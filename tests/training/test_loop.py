"""The loop: which steps it yields, what the metrics' means are, how it stops, and what it costs."""

import time

import pytest
import torch

from offrl.errors import ConfigError
from offrl.training.loop import MetricMeans, train


class Counter:
    """A learner whose metric is the number of updates made; it does nothing else."""

    metrics = ("updates", "even")

    def __init__(self) -> None:
        self.made = 0
        self.batches: list[int] = []

    def update(self, batch):
        self.made += 1
        self.batches.append(batch)
        found = {"updates": torch.tensor([float(self.made)])}
        return found | ({"even": torch.tensor([float(self.made)])} if self.made % 2 == 0 else {})


class Numbers:
    """A source that counts its batches."""

    def __init__(self) -> None:
        self.given = 0

    def sample(self, generators):
        self.given += 1
        return self.given


def run(steps, every, *, start=0, stop=lambda: False):
    learner, means = Counter(), MetricMeans(Counter.metrics)
    yielded = list(train(learner, Numbers(), [], means, steps=steps, every=every, start=start, stop=stop))
    return yielded, learner, means


def test_the_mean_of_rounded_numbers_is_not_rounded():
    """A sum of ones in bfloat16 ends at 256: the mean of 1000 would be 0.256."""
    means = MetricMeans(("q",))
    for _ in range(1000):
        means.add({"q": torch.ones(2, dtype=torch.bfloat16)})
    assert means.pop() == {"q": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("steps", "every", "start", "expected"),
    [
        (10, [4], 0, [4, 8, 10]),
        (10, [5], 0, [5, 10]),
        (12, [4, 6], 0, [4, 6, 8, 12]),
        (10, [4], 5, [8, 10]),
        (10, [4], 8, [10]),
        (3, [100], 0, [3]),
        (10, [4], 10, []),
        (1, [1], 0, [1]),
    ],
)
def test_it_yields_multiples_of_each_period_and_the_last_step(steps, every, start, expected):
    yielded, learner, _ = run(steps, every, start=start)
    assert yielded == expected
    assert learner.made == steps - start
    assert learner.batches == list(range(1, steps - start + 1))  # one batch an update, none left over


def test_a_stop_is_obeyed_after_the_update_and_yielded():
    learner, means = Counter(), MetricMeans(Counter.metrics)
    loop = train(learner, Numbers(), [], means, steps=100, every=[50], stop=lambda: learner.made == 7)
    assert list(loop) == [7]
    assert learner.made == 7


def test_the_loop_makes_no_update_before_it_is_asked():
    learner = Counter()
    loop = train(learner, Numbers(), [], MetricMeans(Counter.metrics), steps=10, every=[2])
    assert learner.made == 0
    next(loop)
    assert learner.made == 2


def test_means_are_over_the_updates_that_had_the_metric():
    """Updates 1..5: mean 3; 'even' occurs at 2 and 4: mean 3. After a pop they start anew: 6..9: 7.5 and 7."""
    _, learner, means = run(5, [5])
    assert means.pop() == {"updates": [3.0], "even": [3.0]}
    assert means.pop() == {}
    for _ in range(4):
        means.add(learner.update(0))
    assert means.pop() == {"updates": [7.5], "even": [7.0]}


def test_metrics_keep_their_order_and_may_be_absent():
    means = MetricMeans(["z", "a", "m"])
    means.add({})
    means.add({name: torch.zeros(1) for name in ("z", "a")})
    means.add({name: torch.zeros(1) for name in ("m", "a", "z")})
    assert list(means.pop()) == ["z", "a", "m"]


def test_means_are_per_seed_and_change_no_tensor_of_the_learner():
    means = MetricMeans(["loss"])
    first = torch.tensor([1.0, 10.0])
    for value in (first, torch.tensor([3.0, 30.0])):
        means.add({"loss": value})
    assert first.tolist() == [1.0, 10.0]
    assert means.pop() == {"loss": [2.0, 20.0]}


def test_partial_sums_survive_a_save():
    whole, half = MetricMeans(["loss"]), MetricMeans(["loss"])
    values = [torch.tensor([x]) for x in (1.0, 2.0, 6.0)]
    for value in values:
        whole.add({"loss": value})
    half.add({"loss": values[0]})
    resumed = MetricMeans(["loss"])
    resumed.load_state_dict(half.state_dict())
    half.add({"loss": torch.tensor([100.0])})  # the saved state is a copy
    for value in values[1:]:
        resumed.add({"loss": value})
    assert resumed.pop() == whole.pop() == {"loss": [3.0]}


def test_an_undeclared_metric_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'surprise'.*'metrics' does not list"):
        MetricMeans(["loss"]).add({"surprise": torch.zeros(1)})


def test_a_metric_is_detached():
    means = MetricMeans(["loss"])
    for _ in range(2):
        means.add({"loss": torch.ones(1, requires_grad=True)})
    assert not means.sums["loss"].requires_grad
    assert means.pop() == {"loss": [1.0]}


def test_the_loop_costs_microseconds_an_update():
    """A TD3+BC update of the default size takes 2 ms or more on one core; 3 % of it are 60 us."""

    class Idle:
        metrics = ("a", "b", "c", "d", "e", "f")

        def __init__(self):
            self.found = {name: torch.zeros(1) for name in self.metrics}

        def update(self, batch):
            return self.found

    class Nothing:
        def sample(self, generators):
            return None

    means, steps = MetricMeans(Idle.metrics), 2_000
    costs = []
    for _ in range(3):
        began = time.process_time()
        for _step in train(Idle(), Nothing(), [], means, steps=steps, every=[1_000, 5_000, 10_000]):
            means.pop()
        costs.append((time.process_time() - began) / steps)
    assert min(costs) < 60e-6, costs
