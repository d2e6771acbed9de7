"""A pretended second device: its tensors live on the CPU, say that they do not, and meet others as on a GPU.

What a GPU refuses is refused here: tensors of both devices in one operation, unless those of the CPU are single numbers
that are read, or indices, or copied.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FREE = ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_", "_local_scalar_dense")
GENERATOR, TENSOR = torch.Generator, torch.tensor


class Far(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, own):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            own.size(),
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device="meta",
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})

    def __getitem__(self, key):
        return super().__getitem__(seen(key))

    def __setitem__(self, key, value):
        super().__setitem__(seen(key), value)

    def tolist(self):
        return self.to("cpu").detach().tolist()

    def new_tensor(self, data, **given):
        return TENSOR(data, **{"dtype": self.dtype, **given}).to(self.device)


class Mode(TorchDispatchMode):
    """Sees what is made on the device, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatched(function, args, kwargs or {})


def dispatched(function, args, kwargs):
    """What an operation gives, on the device where it belongs."""
    name, changes = function._schema.name.removeprefix("aten::"), function._schema.is_mutable
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    if any(x.device.type == "meta" and not isinstance(x, Far) for x in tensors):
        raise AssertionError(f"{name} of a tensor that was made unseen: it has no data")
    refuse(name, changes, args, far, [x for x in tensors if not isinstance(x, Far) and x.dim() > 0])
    there = bool(far)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "meta"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    own_args, own_kwargs = tree_map(lambda x: x.own if isinstance(x, Far) else x, (args, kwargs))
    found = function(*own_args, **own_kwargs)
    if changes and (name.startswith("_foreach") or name.endswith("_")):
        return None if name.startswith("_foreach") else args[0]
    return tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) and there else x, found)


def seen(key):
    """An index whose lists are tensors: torch would make them without a word to the mode."""
    parts = key if isinstance(key, tuple) else (key,)
    parts = tuple(TENSOR(part) if isinstance(part, list) else part for part in parts)
    return parts if isinstance(key, tuple) else parts[0]


def refuse(name, changes, args, far, near):
    """Raise where a GPU would."""
    if far and near and name not in FREE:
        raise RuntimeError(f"{name} of tensors on two devices")
    if name.startswith("index") and far and not isinstance(args[0], Far):
        raise RuntimeError(f"{name}: indices on another device than what they index")
    pairs = (
        zip(*args[:2], strict=False)
        if name.startswith("_foreach") and isinstance(args[1], list)
        else [args[:2]]
    )
    for into, *rest in pairs:
        if (
            changes
            and far
            and name != "copy_"
            and isinstance(into, torch.Tensor)
            and not isinstance(into, Far)
        ):
            if name.startswith("_foreach") and not isinstance(rest[0], Far):
                continue
            raise RuntimeError(f"{name} changes a tensor on another device")


def moved(module):
    """A module with its parameters and buffers on the device."""
    for part in module.modules():
        for key, value in list(part._parameters.items()):
            if value is not None:
                own = torch.nn.Parameter(Far(value.detach().clone()), requires_grad=value.requires_grad)
                part._parameters[key] = own
        for key, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[key] = Far(value.clone())
    return module


def tensor(data, *, device=None, **given):
    """``torch.tensor``, which makes nothing on a device that a mode sees."""
    made = TENSOR(data, **given)
    return made if device is None else made.to(device)


@contextmanager
def pretended():
    """The device is there: its random streams are those of the CPU."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    plain = mock.patch("torch.autocast", mock.MagicMock())
    try:
        with (
            mock.patch("torch.tensor", tensor),
            mock.patch("torch.Generator", side_effect=lambda device="cpu": GENERATOR()),
            plain,
            Mode(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
