"""Blocks of episodes on several processes; which process plays a block changes nothing in it.

This process plays blocks too, so ``workers=2`` starts one more. Between steps of its own block it hands out
blocks and takes results; a helper always has a second block waiting. Helpers are spawned (fork is not safe
after torch has run), with one torch thread each.
"""

import contextlib
import copy
import itertools
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch
from torch import nn

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.blocks import Env, Episode, Plan, check_fit, run_block
from offrl.evaluation.environments import make_env
from offrl.nn.policy import Policy

QUEUED = 2  # blocks that a helper holds, the one it plays included
AHEAD = 8  # blocks a worker beyond the next one in order; bounds the memory of results that wait

Consume = Callable[[list[Episode]], bool]


class BlockPool:
    """Environments of one kind on ``workers`` processes, kept open between calls.

    Args:
        spec: what ``make_env`` takes.
        workers: processes that play, this one included.

    Raises:
        ConfigError: fewer than one worker, or an environment that cannot be made.
    """

    def __init__(self, spec: EnvSpec, workers: int = 1) -> None:
        if workers < 1:
            raise ConfigError(f"workers must be 1 or more, got {workers}")
        self.spec, self.workers = spec, workers
        self.envs: list[Env] = [make_env(spec)]
        self.helpers: list[_Helper] = []

    def run(self, policy: Policy, plan: Plan, sizes: Iterable[int], consume: Consume) -> None:
        """Play blocks 0, 1, ... of ``sizes`` episodes each, and give them to ``consume`` in this order.

        ``consume`` returns whether more blocks are wanted; the first False ends the call.

        Raises:
            PolicyError: the policy does not fit the environment, or cannot be sent to another process.
            ChildProcessError: a helper died.
        """
        check_fit(policy, self.envs[0])
        policy = _ready_to_act(policy)
        _extend(self.envs, self.spec, plan.width)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _Call(self, policy, plan, sizes, consume).play()
        except BaseException:
            self.stop_helpers()
            raise
        finally:
            torch.set_num_threads(threads)

    def start_helpers(self) -> None:
        """Start the processes that are not running yet."""
        while len(self.helpers) < self.workers - 1:
            self.helpers.append(_Helper(self.spec, len(self.helpers) + 1))

    def close(self) -> None:
        """End the helpers and close the environments; may be called twice."""
        self.stop_helpers()
        for env in self.envs:
            env.close()
        self.envs = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop_helpers(self) -> None:
        """End the processes, whatever they do."""
        for helper in self.helpers:
            helper.stop()
        self.helpers = []


class _Call:
    """One call of ``BlockPool.run``: who plays what, and which results wait for their turn."""

    def __init__(
        self, pool: BlockPool, policy: Policy, plan: Plan, sizes: Iterable[int], consume: Consume
    ) -> None:
        self.pool, self.policy, self.plan, self.consume = pool, policy, plan, consume
        self.sizes = enumerate(sizes)
        self.pending: tuple[int, int] | None = next(self.sizes, None)
        self.done: dict[int, list[Episode]] = {}
        self.next, self.more = 0, True

    def play(self) -> None:
        pool = self.pool
        if pool.workers > 1:
            message = pickle.dumps((_pickled(self.policy), self.plan))
            pool.start_helpers()
            for helper in pool.helpers:
                helper.begin(message)
        while self.more:
            self.serve(timeout=0)
            if (task := self.take()) is not None:
                episodes = run_block(pool.envs, self.policy, self.plan, *task, tick=self.tick)
                if episodes is not None:
                    self.finished(task[0], episodes)
            elif self.more and any(helper.tasks for helper in pool.helpers):
                self.serve(timeout=None)
            elif self.more:
                return
        if any(helper.tasks for helper in pool.helpers):
            pool.stop_helpers()  # what they still play is not wanted

    def tick(self) -> bool:
        if self.pool.helpers:
            self.serve(timeout=0)
        return self.more

    def take(self) -> tuple[int, int] | None:
        task = self.pending
        if task is None or not self.more or task[0] >= self.next + AHEAD * self.pool.workers:
            return None
        self.pending = next(self.sizes, None)
        return task

    def finished(self, block: int, episodes: list[Episode]) -> None:
        self.done[block] = episodes
        while self.more and self.next in self.done:
            self.more = self.consume(self.done.pop(self.next))
            self.next += 1

    def serve(self, timeout: float | None) -> None:
        helpers = {helper.connection: helper for helper in self.pool.helpers}
        for connection in wait(list(helpers), timeout) if helpers else ():
            helper = helpers[connection]  # type: ignore[index]
            for block, episodes in helper.receive():
                self.finished(block, episodes)
        for helper in helpers.values():
            while helper.ready and len(helper.tasks) < QUEUED and (task := self.take()) is not None:
                helper.send(task)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started inside never hears Ctrl-C: its parent does, and ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Helper:
    def __init__(self, spec: EnvSpec, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.number, self.ready = number, False
        self.tasks: list[int] = []
        self.message: bytes | None = None
        self.process = context.Process(target=serve, args=(theirs, spec), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        theirs.close()

    def begin(self, message: bytes) -> None:
        self.message = message
        if self.ready:
            self._send_bytes(message)

    def send(self, task: tuple[int, int]) -> None:
        self.tasks.append(task[0])
        self._send_bytes(pickle.dumps(task))

    def receive(self) -> list[tuple[int, list[Episode]]]:
        """A finished block, or nothing when the helper has only now started."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if kind == "error":
            raise value
        if kind == "ready":
            self.ready = True
            if self.message is not None:
                self._send_bytes(self.message)
            return []
        self.tasks.remove(value[0])
        return [value]

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _send_bytes(self, data: bytes) -> None:
        try:
            self.connection.send_bytes(data)
        except (BrokenPipeError, ConnectionError):
            raise self._death() from None

    def _death(self) -> ChildProcessError:
        self.process.join(10)
        return ChildProcessError(
            f"worker process {self.number} died with exit code {self.process.exitcode}; its own message, "
            "if any, is above (a script that starts workers needs an 'if __name__ == \"__main__\":' guard)"
        )


def serve(connection: Connection, spec: EnvSpec) -> None:
    """What a helper process runs: take a policy, play blocks, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):
        try:
            _serve(connection, spec)
        except (PolicyError, ConfigError, FileNotFoundError) as error:
            connection.send(("error", error))


def _serve(connection: Connection, spec: EnvSpec) -> None:
    envs = [make_env(spec)]
    connection.send(("ready", None))
    policy: Any = None
    plan: Any = None
    while True:
        message = connection.recv()
        if isinstance(message[0], bytes):
            policy, plan = pickle.loads(message[0]), message[1]
            _extend(envs, spec, plan.width)
        else:
            connection.send(("block", (message[0], run_block(envs, policy, plan, *message))))


def _extend(envs: list[Env], spec: EnvSpec, width: int) -> None:
    while len(envs) < width:
        envs.append(make_env(spec))


def _ready_to_act(policy: Policy) -> Policy:
    if isinstance(policy, nn.Module):
        tensors = itertools.chain(policy.parameters(), policy.buffers())
        if policy.training or any(tensor.device.type != "cpu" for tensor in tensors):
            return copy.deepcopy(policy).cpu().eval()
    return policy


def _pickled(policy: Policy) -> bytes:
    try:
        return pickle.dumps(policy)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PolicyError(
            f"this policy cannot be sent to another process ({error}); define its class in an importable "
            "module, or run with workers=1"
        ) from error
