"""What our stable-baselines3 algorithms share: names of policies, spaces they know, settings that stay as they are."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from gymnasium.spaces import Dict, Discrete, Space

from offrl.errors import ConfigError
from offrl.online.zoo import NAMES
from offrl.training.options import fitted, require_known


def require_used(given: Iterable[str], used: Iterable[str], instead: str) -> None:
    """Refuse ``policy_kwargs`` that stable-baselines3's base class would take and nobody read (ConfigError).

    Args:
        given: their names.
        used: those that change something.
        instead: what there is, for the message.
    """
    if wrong := sorted(set(given) - set(used)):
        raise ConfigError(f"policy_kwargs: nothing here reads {wrong[0]!r}; there is {instead}")


def require_from_zero(actions: Space) -> None:
    """Refuse numbered actions that do not begin at 0: as in stable-baselines3, 0 .. n - 1 are played (ConfigError)."""
    if isinstance(actions, Discrete) and actions.start != 0:
        raise ConfigError(f"actions must be numbered from 0, not {actions}: renumber them in a wrapper")


UNNAMED = ("run", "OnPolicyAlgorithm")
"""What stable-baselines3's base classes call TensorBoard's folder."""


class FixedSettings:
    """``load`` of stable-baselines3 that refuses settings, which it would put where nobody reads them."""

    config_class: ClassVar[type]
    policy_aliases: ClassVar[dict[str, type]]

    @classmethod
    def policy_of(cls, policy: Any) -> Any:
        """The class of a policy's name; a class as it is.

        Raises:
            ConfigError: no such name.
        """
        if isinstance(policy, str) and policy not in cls.policy_aliases:
            raise ConfigError(f"{cls.__name__} has no {policy!r}; there is {', '.join(cls.policy_aliases)}")
        return cls.policy_aliases[policy] if isinstance(policy, str) else policy

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, Any]:
        """As in stable-baselines3; TensorBoard's folder has the name of the class where none is given to ``learn``."""
        name = type(self).__name__ if tb_log_name in UNNAMED else tb_log_name
        base: Any = super()
        found: tuple[int, Any] = base._setup_learn(
            total_timesteps, callback, reset_num_timesteps, name, progress_bar
        )
        return found

    def require_spaces(self) -> None:
        """Refuse to build networks for no environment, or for dicts of observations (ConfigError)."""
        seen = getattr(self, "observation_space", None)
        if seen is None:
            raise ConfigError(
                f"{type(self).__name__} needs an environment: an id, an environment or a VecEnv"
            )
        if isinstance(seen, Dict):
            raise ConfigError(
                f"observations must be one array, not {seen}: wrap the environment in "
                "gymnasium.wrappers.FlattenObservation"
            )

    @classmethod
    def settings_of(cls, given: dict[str, Any]) -> Any:
        """The settings that the constructor was given.

        Raises:
            ConfigError: a name that is none, with the right one, or a value of another type.
        """
        known = {f.name for f in dataclasses.fields(cls.config_class)}
        for name in given:
            if name not in known and NAMES.get(name) in known:
                raise ConfigError(f"{cls.__name__} has no setting {name!r}: here it is {NAMES[name]}")
        require_known(cls.__name__, cls.config_class, given, cls.config_class)
        return cls.config_class(**fitted(given, cls.config_class))

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        """As in stable-baselines3.

        Raises:
            ConfigError: an argument, or an entry of ``custom_objects``, is a setting by our name or theirs.
        """
        objects = args[3] if len(args) > 3 else kwargs.get("custom_objects")
        given = set(kwargs) | set(objects or ())
        known = {f.name for f in dataclasses.fields(cls.config_class)} | set(NAMES)
        if wrong := sorted(given & known):
            raise ConfigError(
                f"load cannot change {wrong[0]}: make a new {cls.__name__} with it, then set_parameters(FILE)"
            )
        return super().load(*args, **kwargs)  # type: ignore[misc]
