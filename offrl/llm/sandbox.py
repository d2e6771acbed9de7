"""Generated Python, run where it can do no harm: see ``sandbox_child`` for what it may do, which is next to nothing.

What isolates is tried out before the first program; where that fails, programs are refused, never run without it.
A program that wants to be taken for a right one can still cheat by looking for its tests in its own process: this
protects the machine, and rewards from accidents.
"""

import contextlib
import functools
import json
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from offrl.errors import ConfigError
from offrl.llm import sandbox_child

SECONDS, MEMORY, WORKERS = 5, 512 * 2**20, 4
FENCE = re.compile(r"```([^\n`]*)\n(.*?)```", re.DOTALL)
LANGUAGES = ("", "py", "python", "python3")
ESCAPES = {  # what must not work, as programs that come to their end only if it does
    "a new process": "import os\nif os.fork() == 0:\n    os._exit(0)",
    "the network": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
    "writing files": "open('/tmp/x' if __import__('os').path.isdir('/tmp') else '/x', 'w').write('x')",
    "a privileged user": "import os\nassert os.geteuid() == 0",
    "much memory": "import mmap\nmmap.mmap(-1, {memory})",
}


def run(code: str, *, seconds: int = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a program runs to its end without an exception, within its limits.

    Args:
        code: the program.
        seconds: of processor time; of wall time, twice as much.
        memory: bytes of address space.

    Raises:
        ConfigError: it cannot be isolated here.
    """
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-I", "-S", sandbox_child.__file__, root, str(seconds), str(memory)]
        status, said, complaint = _ended(command, json.dumps({"code": code, "mark": mark}), 2.0 * seconds)
    if status == sandbox_child.FAILED and complaint:  # a program has the status, but no such words
        raise ConfigError(f"generated code cannot be isolated here ({complaint}): verifier python is refused")
    return said == mark


def _ended(command: list[str], given: str, seconds: float) -> tuple[int | None, str, str]:
    """Exit status (None: out of time) and the first words on both outputs, which are read only after the end.

    A program that says more than a pipe holds waits, and runs out of time. What it says need not be text.
    """
    how: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env={}, encoding="utf-8", errors="replace", **how) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.close()
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return None, "", ""
        return status, process.stdout.read(100), process.stderr.read(1000).strip()


@functools.cache
def require_isolation() -> None:
    """Try to escape.

    Raises:
        ConfigError: something that must not work does, or nothing works.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            "generated code cannot be isolated here (it takes Linux): verifier python is refused"
        )
    if not run("import math\nassert math.sqrt(4) == 2"):
        raise ConfigError("generated code cannot be isolated here (nothing runs): verifier python is refused")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        for what, code in ESCAPES.items():
            program = code.replace("{port}", str(server.getsockname()[1])).replace(
                "{memory}", str(2 * MEMORY)
            )
            if run(program):
                raise ConfigError(f"generated code is not kept from {what} here: verifier python is refused")


def code_of(response: str) -> str:
    """The last fenced block of a response that is not marked as another language's, or all of it."""
    blocks = [code for language, code in FENCE.findall(response) if language.strip().lower() in LANGUAGES]
    return blocks[-1] if blocks else response


def tests_of(answer: Any) -> str:
    """Unit tests as one program: a text, or several."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, Sequence) and all(isinstance(part, str) for part in answer):
        return "\n".join(answer)
    raise ConfigError(f"verifier python needs code as the answer, got {type(answer).__name__}")


def unit_tests() -> Callable[[list[str], list[Any]], list[float]]:
    """The verifier: 1 where the answer's code passes after the response's.

    Raises:
        ConfigError: code cannot be isolated here.
    """
    require_isolation()

    def passes(pair: tuple[str, Any]) -> float:
        response, answer = pair
        return float(run(f"{code_of(response)}\n\n{tests_of(answer)}\n"))

    def verify(responses: list[str], answers: list[Any]) -> list[float]:
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(passes, zip(responses, answers, strict=True)))

    return verify
