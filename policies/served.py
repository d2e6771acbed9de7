"""A policy that lives in another process: what it needs installed, it has there.

    describe()                   sizes, action box, normalizer, trained levels, names of its inputs
    encode(history)              observation (B, To, O) to be remembered under a number, obs_id
    denoise(u, rho, obs_id)      D(u, rho) (B, H, A), see ``Denoiser``
    chunk(history, seed, zero)   a clean chunk of its own, its noise drawn there from the seed
    to_actions(chunk)            in the environment's units

``ServedPolicy`` shows these to a composition as it would be shown a policy of this process; the shared noise is drawn
here, so that a composition with a served parent is the same to the bit.
"""

import math
import threading
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.schedules import VP
from offrl.errors import PolicyError
from offrl.messages import Client, Message
from offrl.policies.chunk import Plans, RecedingHorizon
from offrl.policies.composition import Denoiser

KEPT = 16  # encoded observations a connection
NUMBERS = (
    "horizon",
    "n_obs",
    "n_act",
    "obs_dim",
    "act_dim",
    "denoising_steps",
    "space",
    "draws",
    "clip_bound",
)
UNITS = ("shift", "scale", "offset", "inverse_scale")


class PolicyService:
    """Answers one connection's calls to a policy.

    Args:
        policy: on the CPU.
        lock: shared by all connections: one call at a time.
    """

    def __init__(self, policy: Plans, lock: threading.Lock) -> None:
        self.policy, self.lock = policy, lock
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.count = 0

    def answer(self, message: Message) -> Message:
        """See the module's text.

        Raises:
            PolicyError: an unknown call, or arrays that do not fit.
        """
        calls = {"describe": self.describe, "encode": self.encode, "denoise": self.denoise}
        calls |= {"chunk": self.chunk, "to_actions": self.to_actions}
        if message.call not in calls:
            raise PolicyError(f"a policy answers {', '.join(calls)}, not {message.call!r}")
        with self.lock, torch.inference_mode():
            return calls[message.call](message)

    def close(self) -> None:
        """Forget the observations."""
        self.kept.clear()

    def describe(self, message: Message) -> Message:
        """What a composition must know."""
        p = self.policy
        face = p.denoiser()
        arrays = {"action_low": p.action_low.numpy(), "action_high": p.action_high.numpy()}
        arrays |= {name: getattr(face.actions, name).numpy() for name in UNITS}
        arrays |= {} if face.levels is None else {"abar": face.levels.abar.numpy()}
        values = {name: getattr(p, name) for name in NUMBERS}
        inputs = getattr(p, "inputs", None) or [("observation", (p.obs_dim,))]
        values |= {"inputs": [[name, list(shape)] for name, shape in inputs], "now": face.now}
        return Message(message.call, values, arrays)

    def encode(self, message: Message) -> Message:
        """Remember an observation; the oldest one is forgotten."""
        history = self.array(message, "history", (self.policy.n_obs, self.policy.obs_dim))
        self.count += 1
        self.kept[self.count] = self.policy.encode(history)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return Message(message.call, {"obs_id": self.count})

    def denoise(self, message: Message) -> Message:
        """D(u, rho)."""
        u = self.array(message, "u", (self.policy.horizon, self.policy.act_dim))
        rho, obs_id = message.values.get("rho"), message.values.get("obs_id")
        if (
            not isinstance(rho, float)
            or not rho > 0
            or not isinstance(obs_id, int)
            or obs_id not in self.kept
        ):
            raise PolicyError(f"denoise takes a rho above 0 and a known obs_id, got {rho!r} and {obs_id!r}")
        clean = self.policy.denoiser().denoise(u, rho, self.kept[obs_id])
        return Message(message.call, {}, {"clean": clean.numpy()})

    def chunk(self, message: Message) -> Message:
        """A chunk of its own."""
        history = self.array(message, "history", (self.policy.n_obs, self.policy.obs_dim))
        generator = torch.Generator().manual_seed(int(message.values["seed"]))
        chunk = self.policy.chunk(history, generator, zero=bool(message.values["zero"]))
        return Message(message.call, {}, {"chunk": chunk.numpy()})

    def to_actions(self, message: Message) -> Message:
        """Other units."""
        chunk = self.array(message, "chunk", (-1, self.policy.act_dim))
        return Message(message.call, {}, {"actions": self.policy.to_actions(chunk).numpy()})

    def array(self, message: Message, name: str, shape: tuple[int, int]) -> Tensor:
        """A float32 array (B, *shape) of a message; -1 is any size (PolicyError)."""
        found = message.arrays.get(name)
        fits = found is not None and found.dtype == np.float32 and found.ndim == 3 and len(found) > 0
        if (
            found is None
            or not fits
            or any(w not in (-1, n) for n, w in zip(found.shape[1:], shape, strict=True))
        ):
            raise PolicyError(f"{message.call} takes float32 {name!r} (B, {shape[0]}, {shape[1]})")
        return torch.from_numpy(found)


class ServedPolicy(RecedingHorizon):
    """A policy behind a port of this machine.

    Args:
        port: that 'offrl serve policy' printed.

    Raises:
        ConfigError: nobody answers there.
        PolicyError: what answers is no policy, now or later: numbers that are not finite are refused.
    """

    kind: ClassVar[str] = "served"

    def __init__(self, port: int) -> None:
        client = Client(port)
        found = client("describe")
        try:
            facts, arrays = found.values, {name: torch.from_numpy(a) for name, a in found.arrays.items()}
            super().__init__(facts["obs_dim"], facts["act_dim"], arrays["action_low"], arrays["action_high"])
            self.horizon, self.n_obs, self.n_act = (int(facts[n]) for n in ("horizon", "n_obs", "n_act"))
            self.denoising_steps, self.draws = int(facts["denoising_steps"]), bool(facts["draws"])
            self.space, self.clip_bound, self.now = (
                str(facts["space"]),
                facts["clip_bound"],
                int(facts["now"]),
            )
            self.inputs = tuple((str(name), tuple(map(int, shape))) for name, shape in facts["inputs"])
            self.units = AffineNormalizer(*(arrays[name] for name in UNITS))
            self.levels = VP.from_abar(arrays["abar"]) if "abar" in arrays else None
            bound = () if self.clip_bound is None else (self.clip_bound,)
            numbers = (*bound, *(n for a in arrays.values() for n in a.flatten().tolist()))
            if not all(map(math.isfinite, numbers)):
                raise ValueError("it describes itself with numbers that are not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"served:{port} is no policy ({type(error).__name__}: {error})") from None
        self.client = client

    def encode(self, history: Tensor) -> int:
        """The number under which the observation is remembered there."""
        return int(self.client("encode", {"history": plain(history)}).values["obs_id"])

    def denoiser(self) -> Denoiser:
        """The face for compositions."""
        return Denoiser(self.denoise, self.horizon, self.now, self.units, self.levels)

    def denoise(self, u: Tensor, rho: float, condition: int) -> Tensor:
        """D(u, rho) (B, H, A)."""
        answer = self.client("denoise", {"u": plain(u)}, rho=float(rho), obs_id=condition)
        return self.tensor(answer, "clean", u.shape)

    def chunk(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """A clean chunk (B, H, A) of its own; its noise comes from a seed that is drawn here."""
        seed = int(torch.randint(2**53, (), generator=generator))
        answer = self.client("chunk", {"history": plain(history)}, seed=seed, zero=zero)
        return self.tensor(answer, "chunk", (len(history), self.horizon, self.act_dim))

    def to_actions(self, chunk: Tensor) -> Tensor:
        """A clean chunk in the environment's units."""
        return self.tensor(self.client("to_actions", {"chunk": plain(chunk)}), "actions", chunk.shape)

    def plan(
        self, history: Tensor, generator: torch.Generator | None = None, *, zero: bool = False
    ) -> Tensor:
        """Actions to carry out (B, Ta, A)."""
        actions = self.to_actions(self.chunk(history, generator, zero=zero))
        return actions[:, self.now : self.now + self.n_act]

    def tensor(self, answer: Message, name: str, shape: tuple[int, ...]) -> Tensor:
        """An array of an answer (PolicyError where it has another shape, or holds what is no number)."""
        found = answer.arrays.get(name)
        if found is None or found.shape != tuple(shape) or found.dtype != np.float32:
            raise PolicyError(
                f"served:{self.client.port} answered {answer.call} with another shape than {tuple(shape)}"
            )
        if not np.isfinite(found).all():
            raise PolicyError(
                f"served:{self.client.port} answered {answer.call} with numbers that are not finite"
            )
        return torch.from_numpy(found)


def plain(tensor: Tensor) -> np.ndarray:
    """As a NumPy array."""
    found: np.ndarray = tensor.detach().float().cpu().numpy()
    return found
