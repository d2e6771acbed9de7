"""How fast a method learns in an environment, found out by a short run that is thrown away."""

import dataclasses
import time

from stable_baselines3.common.callbacks import BaseCallback

from offrl.algos import load_online
from offrl.data.environments import EnvSpec
from offrl.evaluation.environments import env_spec
from offrl.nn.policy import Policy
from offrl.online.acting import acting_policy
from offrl.online.options import choose
from offrl.online.run_callback import run_config
from offrl.online.runner import build
from offrl.training.cells import TrainingCell

WARM, FOREVER = (
    100,
    1_000_000_000,
)  # steps before an off-policy method learns here; steps of a run that is cut


class Stopwatch(BaseCallback):
    """Stops a model after ``least`` seconds of whole rollouts and what is learned from them; the first is not timed.

    Args:
        least: seconds.
        after: environment steps that are not timed either.
    """

    def __init__(self, least: float, after: int) -> None:
        super().__init__()
        self.least, self.after = least, after
        self.first, self.began, self.seconds = 0, 0.0, 0.0  # step and time when the clock was started

    def _on_rollout_start(self) -> None:
        now, step = time.perf_counter(), self.model.num_timesteps
        if self.first and now - self.began >= self.least:
            self.seconds = (now - self.began) / (step - self.first)
        elif not self.first and step >= self.after:
            self.first, self.began = step, now

    def _on_step(self) -> bool:
        return not self.seconds


def seconds_per_step(training: TrainingCell, least: float) -> tuple[float, Policy, EnvSpec]:
    """Seconds an environment step with what is learned from it, the policy afterwards, and where it plays.

    Args:
        training: the run, of which ``least`` seconds are played, or one rollout where that takes longer.
        least: 0 plays none, and the first number is 0.
    """
    name, method = training.algorithm, load_online(training.algorithm)
    given = training.options | training.settings | {"env": training.dataset}
    options, settings = choose(name, method, given, training.preset)
    random = getattr(settings, "learning_starts", 0)
    if random > WARM:
        settings = dataclasses.replace(settings, learning_starts=WARM)
    spec = env_spec(training.dataset)
    model = build(method, settings, run_config(name, {}, options, spec))
    watch = Stopwatch(least, min(random, WARM))
    if least > 0:
        model.learn(FOREVER, callback=watch)
    policy = acting_policy(model)
    if model.env is not None:
        model.env.close()
    return watch.seconds, policy, spec
