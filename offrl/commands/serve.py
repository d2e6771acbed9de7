"""``offrl serve policy|env``: a policy or a simulator for programs that run in other Python environments."""

import threading
from dataclasses import dataclass

import torch
import tyro

from offrl.commands.arguments import parse, subcommand
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env
from offrl.evaluation.served import EnvService
from offrl.evaluation.sources import load_source, source_facts
from offrl.messages import Server
from offrl.policies.composed import composable
from offrl.policies.served import PolicyService

SUBCOMMANDS = {
    "policy": "a chunk policy's denoiser, for 'offrl compose --policy served:PORT' elsewhere on this machine",
    "env": "an environment, for '--env served:PORT' elsewhere on this machine",
}


@dataclass(frozen=True, kw_only=True)
class ServePolicyOptions:
    """Answer calls to a policy's denoiser, on this machine only, until Ctrl-C.

    The policy's libraries need to be installed only here. In another Python environment:

      offrl serve policy py:their_code:make --env pusht-state       prints served:PORT
      offrl compose --policy served:PORT --policy RUN --env pusht-state

    SOURCE is a run or policy folder, lerobot:DIR, sb3:FILE.zip, or code of your own, py:PACKAGE.MODULE:NAME, whose
    policy has the methods of offrl.policies.chunk.Plans. Messages are JSON and plain arrays; nothing received is run.
    """

    source: tyro.conf.Positional[str]
    """The policy."""
    env: str | None = None
    """Environment that it acts in; default: the run's own."""
    port: int = 0
    """To listen on; 0: a free one, which is printed."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True, kw_only=True)
class ServeEnvOptions:
    """Answer calls to an environment, on this machine only, until Ctrl-C; each caller gets one of its own.

    The simulator needs to be installed only here. MODULE:ID imports a module that registers the id. Example:

      offrl serve env fetch-pick-state                              prints served:PORT
      offrl eval RUN --env served:PORT --episodes 50
    """

    env: tyro.conf.Positional[str]
    """Gymnasium id, or a short name (pusht-state)."""
    port: int = 0
    """To listen on; 0: a free one, which is printed."""


def main(argv: list[str]) -> int:
    """``offrl serve ...``."""
    name = subcommand("serve", SUBCOMMANDS, overview, argv)
    if name is None:
        return 0
    if name == "policy":
        return run(policy_server(parse(ServePolicyOptions, "offrl serve policy", argv[1:])), argv[1])
    options = parse(ServeEnvOptions, "offrl serve env", argv[1:])
    return run(env_server(options), options.env)


def overview() -> str:
    """The text of ``offrl serve --help``."""
    lines = ["usage: offrl serve SUBCOMMAND ...", ""]
    lines += [f"  {name:8} {about}" for name, about in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "'offrl serve SUBCOMMAND --help' explains each"])


def policy_server(options: ServePolicyOptions) -> Server:
    """A server of a policy.

    Raises:
        ConfigError: the environment is not known, or there is no such port, or it is taken.
        PolicyError: a policy without a denoiser.
    """
    spec = source_facts(options.source).env if options.env is None else named_environment(options.env)
    if spec is None:
        raise ConfigError(f"{options.source} does not say which environment it is for; pass --env ID")
    torch.set_num_threads(max(options.threads, 1))
    policy, lock = composable(load_source(options.source, spec).eval()), threading.Lock()
    return Server(lambda: PolicyService(policy, lock), options.port)


def env_server(options: ServeEnvOptions) -> Server:
    """A server of an environment.

    Raises:
        ConfigError, MissingExtraError: it cannot be made, or the port cannot be had.
    """
    spec = named_environment(options.env)
    make_env(spec).close()
    return Server(lambda: EnvService(spec), options.port)


def run(server: Server, what: str) -> int:
    """Say where, and answer until interrupted."""
    print(f"{what} is served:{server.port}, for this machine only; Ctrl-C ends it", flush=True)
    try:
        server.run()
    finally:
        server.close()
    return 0
