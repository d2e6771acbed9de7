"""The observation statistics in stable-baselines3's ``vecnormalize.pkl``, read without running its pickle.

A pickle is a program. This reader (1) walks its instructions first and refuses any that it does not know,
or that would reserve more than the file holds; (2) resolves exactly the names below, every one of them to
an inert stand-in that only keeps its arguments; (3) turns the bytes of the few numbers that it wants into
arrays itself. Nothing of numpy, gym or stable-baselines3 is called.
"""

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offrl.errors import PolicyError

MAX_BYTES = 4 << 20
MAX_INSTRUCTIONS = 200_000

RECONSTRUCT, SCALAR, FROM_BUFFER = "_reconstruct", "scalar", "_frombuffer"
NAMES = frozenset(
    [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in (RECONSTRUCT, SCALAR)]
    + [(f"numpy.{core}.numeric", FROM_BUFFER) for core in ("core", "_core")]
    + [("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict")]
    + [("numpy.random._pickle", f"__{name}_ctor") for name in ("randomstate", "generator", "bit_generator")]
    + [("numpy.random._mt19937", "MT19937"), ("numpy.random._pcg64", "PCG64")]
    + [
        (f"{gym}.spaces.{module}", module.title())
        for gym in ("gym", "gymnasium")
        for module in ("box", "dict")
    ]
    + [
        ("numpy.random.bit_generator", "SeedSequence"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
        ("stable_baselines3.common.running_mean_std", "RunningMeanStd"),
        ("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize"),
    ]
)
INSTRUCTIONS = """
PROTO FRAME STOP MARK POP POP_MARK GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD NONE NEWTRUE NEWFALSE BININT
BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINSTRING BINSTRING
SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND
APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
"""
KINDS = {"f2", "f4", "f8", "i4", "i8", "b1"}  # numbers that can be asked for, little or big endian


@dataclass(frozen=True)
class ObservationStatistics:
    """``clip((o - mean) / std, -clip, clip)`` is what the agent saw."""

    mean: np.ndarray  # (O,) float64
    std: np.ndarray  # (O,) float64, sqrt(variance + epsilon)
    clip: float


def read_vecnormalize(path: Path | str) -> ObservationStatistics | None:
    """The statistics of ``vecnormalize.pkl``, or None if the agent was trained with ``norm_obs=False``.

    Raises:
        FileNotFoundError: no such file.
        PolicyError: not a VecNormalize pickle, damaged, hostile, or with dict observations.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.stat().st_size > MAX_BYTES:
        raise PolicyError(f"{path} is larger than {MAX_BYTES} bytes; that is not a VecNormalize file")
    try:
        state = _state(_load(path.read_bytes()), "VecNormalize")
        if not state.get("norm_obs", True):
            return None
        if isinstance(state["obs_rms"], dict):
            raise PolicyError("its observations are a dict, which is not supported")
        rms = _state(state["obs_rms"], "RunningMeanStd")
        mean, variance = _array(rms["mean"]), _array(rms["var"])
        epsilon, clip = _number(state["epsilon"]), _number(state["clip_obs"])
    except KeyError as error:
        raise PolicyError(f"{path}: it holds no {error}; it is not a VecNormalize file") from error
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    if mean.ndim != 1 or mean.shape != variance.shape:
        raise PolicyError(
            f"{path}: mean {mean.shape} and variance {variance.shape} should be two equal vectors"
        )
    total = variance + epsilon
    if not (np.isfinite(mean).all() and np.isfinite(total).all() and (total > 0).all() and clip > 0):
        raise PolicyError(f"{path}: statistics must be finite, variance + epsilon and the clip above 0")
    return ObservationStatistics(mean, np.sqrt(total), clip)


class _Inert:
    """Keeps what the pickle passes; does nothing with it."""

    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_STAND_INS = {key: type("_Named", (_Inert,), {"name": key[1]}) for key in NAMES}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise PolicyError(f"it names {module}.{name}, which no VecNormalize file needs; refused")
        return _STAND_INS[module, name]


def _load(data: bytes) -> Any:
    _inspect(data)
    try:
        return _Reader(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"it is damaged ({error})") from error


def _inspect(data: bytes) -> None:
    """Read the instructions without obeying them."""
    known = INSTRUCTIONS.split()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if instruction.name not in known or count > MAX_INSTRUCTIONS:
                raise PolicyError(f"its pickle uses {instruction.name}, or is too long; refused")
            if instruction.name == "LONG_BINPUT" and int(argument or 0) > MAX_INSTRUCTIONS:
                raise PolicyError("its pickle asks for a memo larger than the file; refused")
    except ValueError as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"it is not a whole pickle ({error})") from error


def _state(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, _Inert) or value.name != name or not isinstance(value.state, dict):
        raise PolicyError(f"there is no {name} where one belongs")
    return value.state


def _dtype(value: Any) -> np.dtype:
    if isinstance(value, _Inert) and value.name == "dtype":
        code = value.args[0] if value.args else None
        order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
        if code in KINDS and order in ("<", ">", "|", "="):
            kind: np.dtype = np.dtype(f"{order}{code}")
            return kind
    raise PolicyError("an array is not of plain numbers")


def _array(value: Any) -> np.ndarray:
    """An array's stand-in as float64."""
    parts = (None, None, None)
    if isinstance(value, _Inert) and value.name == RECONSTRUCT:
        if isinstance(value.state, tuple) and len(value.state) == 5:
            parts = (value.state[4], value.state[2], value.state[1])
    elif isinstance(value, _Inert) and value.name == FROM_BUFFER and len(value.args) >= 3:
        parts = value.args[:3]
    raw, dtype, shape = parts
    kind = _dtype(dtype)
    if not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple) or len(shape) != 1:
        raise PolicyError("an array is not a vector of plain numbers")
    if len(raw) % kind.itemsize or shape[0] != len(raw) // kind.itemsize:
        raise PolicyError(f"an array of shape {shape} holds {len(raw)} bytes")
    return np.frombuffer(bytes(raw), kind).astype(np.float64)


def _number(value: Any) -> float:
    if isinstance(value, _Inert) and value.name == SCALAR and len(value.args) == 2:
        kind, raw = _dtype(value.args[0]), value.args[1]
        if isinstance(raw, bytes) and len(raw) == kind.itemsize:
            value = np.frombuffer(raw, kind)[0].item()
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise PolicyError("epsilon and clip_obs must be finite numbers")
    return float(value)
