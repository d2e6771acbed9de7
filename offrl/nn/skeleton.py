"""Saved policies looked at without their weights: sizes, settings, action box, normalizers."""

from pathlib import Path

import safetensors
import torch

from offrl.errors import PolicyError
from offrl.nn.policy import JSON_NAME, WEIGHTS_NAME, Policy, policy_class, read_description


def policy_skeleton(directory: Path | str) -> Policy:
    """A saved policy without its networks' weights: they stay on the 'meta' device, its own buffers are read.

    Sizes, settings, action box and normalizers can be looked at without reading gigabytes; it cannot act.

    Raises:
        FileNotFoundError, PolicyError: as ``load_policy``, as far as names and shapes tell.
    """
    description = read_description(directory)
    kind, config = description.get("kind"), description.get("config")
    if (found := policy_class(kind)) is None or not isinstance(config, dict) or description.get("parents"):
        raise PolicyError(f"{directory}: a policy of kind {kind!r} cannot be looked at without loading it")
    try:
        with torch.device("meta"):
            policy = found.made_of({}, config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PolicyError(f"{directory}: {JSON_NAME} does not describe a {kind} policy: {error}") from error
    path = Path(directory) / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
            if wrong := sorted(
                n for n in shapes.keys() | found_shapes if shapes.get(n) != found_shapes.get(n)
            ):
                raise PolicyError(
                    f"{path} does not fit {JSON_NAME}: {wrong[0]!r} is {found_shapes.get(wrong[0], 'missing')}, "
                    f"expected {shapes.get(wrong[0], 'nothing of that name')}"
                )
            for name, _ in list(policy.named_buffers(recurse=False)):
                if name in shapes:
                    setattr(policy, name, file.get_tensor(name))
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{path} is damaged: {error}") from error
    policy.derive()
    return policy.eval()
