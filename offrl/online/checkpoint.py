"""The state of a stable-baselines3 model as plain tensors and numbers, for ``checkpoint.pt``.

Parameters, optimizers, counters, running statistics, the replay buffer, and the episodes under way
(``offrl.online.replayable``).
"""

import json
from collections import deque
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import recursive_getattr

from offrl.errors import CheckpointError
from offrl.online.off_policy import OffPolicyMethod
from offrl.online.recording import recording
from offrl.online.replayable import episodes, last_observations, play_again, replayable

COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "_current_progress_remaining")
ARRAYS = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "dones",
    "timeouts",
)  # of a replay buffer


LAST = ("_last_obs", "_last_original_obs", "_last_episode_starts")  # what the next step begins with


def model_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Everything of ``model`` that its next update depends on; of its environments, if they are ``Replayable``."""
    _, variables = model._get_torch_save_params()
    state: dict[str, Any] = {
        "parameters": model.get_parameters(),
        "variables": {name: recursive_getattr(model, name).detach() for name in variables},
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "episodes": [[float(e["r"]), int(e["l"])] for e in model.ep_info_buffer or ()],
        "random_actions": json.dumps(model.action_space.np_random.bit_generator.state),
    }
    if environments := replayable(model.env):
        state["under_way"] = episodes(environments)
        state["last"] = {
            name: None if (x := getattr(model, name)) is None else torch.from_numpy(x) for name in LAST
        }
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        state["statistics"] = {
            name: [torch.as_tensor(rms.mean), torch.as_tensor(rms.var), float(rms.count)]
            for name in ("obs_rms", "ret_rms")
            if isinstance(rms := getattr(normalizer, name, None), RunningMeanStd)
        }
        state["discounted"] = torch.from_numpy(normalizer.returns)  # of the episodes under way
    if isinstance(model, OffPolicyMethod):
        state["metrics"] = [{name: total.detach() for name, total in model._sums.items()}, model._summed]
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        rows = buffer.buffer_size if buffer.full else buffer.pos
        state["buffer"] = {name: torch.from_numpy(getattr(buffer, name)[:rows]) for name in ARRAYS}
        state["buffer_at"] = [int(buffer.pos), bool(buffer.full)]
    return state


def restore_model(model: BaseAlgorithm, state: dict[str, Any], *, strict: bool = True) -> bool:
    """Put back what ``model_state`` took; the model was built from the same settings.

    Args:
        model: in environments that are ``Replayable``, if those of the state were.
        state: of ``model_state``.
        strict: refuse environments that do not come to the saved observations and rewards, and states of the first
            versions, which hold no episodes; else new episodes start.

    Returns:
        Whether the environments are where they were.

    Raises:
        CheckpointError: they are not, with ``strict``.
    """
    environments = replayable(model.env)
    assert environments is not None, "a model is put back into environments that are Replayable"
    environments._reset_seeds()  # of the first episodes, which a new model asks for
    same = "under_way" in state and play_again(environments, state["under_way"])
    if strict and not same:
        raise CheckpointError(
            "an environment does not come to the same state when the last actions are played again, so that a resume "
            "would not be exact; add --allow-inexact to go on with new episodes"
        )
    if same:
        for name, value in state["last"].items():
            setattr(model, name, None if value is None else value.cpu().numpy())
        if steps := recording(model.env):
            steps.go_on(last_observations(environments))
    else:  # first: a reset moves running statistics; 'learn' will not do it again
        model._last_obs = model.env.reset()  # type: ignore[assignment, union-attr]
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    model.set_parameters(state["parameters"], exact_match=True)
    for name, value in state["variables"].items():
        recursive_getattr(model, name).data.copy_(value)
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model.ep_info_buffer = deque(
        ({"r": r, "l": length, "t": 0.0} for r, length in state["episodes"]), maxlen=model._stats_window_size
    )
    if "random_actions" in state:
        model.action_space.np_random.bit_generator.state = json.loads(state["random_actions"])
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        for name, (mean, var, count) in state["statistics"].items():
            rms = getattr(normalizer, name)
            rms.mean, rms.var, rms.count = mean.cpu().numpy(), var.cpu().numpy(), count
        if same:
            normalizer.old_obs = last_observations(environments)
            normalizer.returns = state["discounted"].cpu().numpy()
        else:
            model._last_original_obs = normalizer.get_original_obs()  # what off-policy methods store
            model._last_obs = normalizer.normalize_obs(model._last_original_obs)
    if isinstance(model, OffPolicyMethod):
        model._sums, model._summed = state["metrics"]
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name, rows in state["buffer"].items():
            getattr(buffer, name)[: len(rows)] = rows.cpu().numpy()
        buffer.pos, buffer.full = state["buffer_at"]
    return same
