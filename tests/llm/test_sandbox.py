"""Generated Python is kept from everything, scored 0 where it tries, and the run goes on."""

import contextlib
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from offrl.errors import ConfigError
from offrl.llm import sandbox, sandbox_child
from offrl.llm.sandbox import code_of, run
from offrl.llm.verifiers import load_verifier

CHILD = Path(sandbox_child.__file__).read_text()
RIGHT = "def double(x):\n    return 2 * x\n"
TESTS = ["assert double(2) == 4", "assert double(-1) == -2"]


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def stopped(code, **limits):
    """Whether what it tries does not work, and what comes after it is judged as ever."""
    return not run(code, **limits) and run("x = 1")


def test_an_infinite_loop_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start = time.monotonic()
    assert stopped("while True:\n    pass", seconds=1)
    assert time.monotonic() - start < 8

    time.sleep(0.1)  # and no process outlives its program
    of = [Path(f"/proc/{name}/cmdline") for name in os.listdir("/proc") if name.isdigit()]
    commands = []
    for path in of:
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes())
    assert not [
        command for command in commands if str(tmp_path).encode() in command and b"sandbox_child" in command
    ]


def test_a_fork_is_refused():
    assert stopped("import os\nos.fork()")
    assert stopped("import subprocess\nsubprocess.run(['/bin/true'])")
    assert stopped("import threading\nt = threading.Thread(target=print)\nt.start()")


def test_a_memory_bomb_is_refused():
    assert stopped("held = []\nwhile True:\n    held.append(bytearray(10**7))")
    assert run("held = bytearray(10**8)")


def test_a_network_call_is_refused(port):
    with socket.create_connection(("127.0.0.1", port), 1):
        pass
    assert stopped(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")


def test_writing_a_file_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    for folder in (tmp_path, "/tmp", "/dev/shm", "", "/", sandbox_child.__file__.rpartition("/")[0]):
        assert stopped(f"open({os.path.join(folder, 'written')!r}, 'w').write('x')")
    for folder in (tmp_path, "/tmp", "/dev/shm", "."):
        assert not os.path.exists(os.path.join(folder, "written"))


def test_there_is_nothing_to_read():
    here = {folder for folder in os.listdir("/") if folder.startswith("lib")}
    top = sys.base_prefix.split("/")[1]
    assert run(f"import os\nassert set(os.listdir('/')) <= {here | {'usr', top}!r}")
    assert stopped(f"open({__file__!r}).read()")
    assert run("import os\nassert set(os.environ) <= {'LC_CTYPE'}")


def test_it_has_no_rights():
    assert run("import os\nassert os.geteuid() != 0 and os.getgroups() in ([], [os.getgid()])")
    assert stopped("import ctypes, os\nassert ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, b'') == 0")
    assert stopped("import os\nos.setuid(0)")
    assert stopped("import os\nos.chroot('/')")
    assert stopped("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (5, 5))")
    assert stopped(f"import os\nos.kill({os.getpid()}, 0)")


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)", "import os\nos._exit(0)", f"import os\nos._exit({sandbox_child.FAILED})", "quit()",
        "1 / 0", "x = (",
    ],
)  # fmt: skip
def test_a_program_must_come_to_its_end(code):
    verify = load_verifier("python")
    assert verify([f"{RIGHT}{code}"], [TESTS]) == [0.0]


def test_output_is_not_the_mark_and_cannot_fill_memory():
    assert run("print('hello')\nimport sys\nsys.stderr.write('x' * 10**6)")
    assert stopped(
        "import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'x' * 32)\n    except OSError:\n        pass"
    )
    assert stopped(
        "import os\nfor _ in range(100):\n    for fd in range(3, 20):\n        try:\n            os.write(fd, b'x' * 10**5)\n        except OSError:\n            pass",
        seconds=1,
    )


def test_output_need_not_be_text():
    assert stopped(
        "import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b'\\xff')\n    except OSError:\n        pass"
    )


def test_unit_tests_of_responses():
    verify = load_verifier("python")
    fenced = f"Let me think.\n```python\nwrong = (\n```\nBetter:\n```python\n{RIGHT}```\nDone."
    responses = [
        RIGHT,
        fenced,
        RIGHT.replace("2", "3"),
        "while True:\n    pass",
        "import os\nos.fork()",
        RIGHT,
    ]
    sandbox_seconds = sandbox.SECONDS
    try:
        sandbox.run.__kwdefaults__["seconds"] = 1
        assert verify(responses, [TESTS] * 5 + ["\n".join(TESTS)]) == [1, 1, 0, 0, 0, 1]
    finally:
        sandbox.run.__kwdefaults__["seconds"] = sandbox_seconds
    with pytest.raises(ConfigError, match="code as the answer, got int"):
        sandbox.tests_of(4)
    assert code_of("x = 1") == "x = 1"
    shell, said = "```bash\npip install x\n```\n", "prints\n```text\n3\n```\n"
    for own in ("", "py", "python", "Python3", "python\r"):
        code = f"```{own}\nx = 1\n```\n"
        for response in (code, shell + "so:\n" + code, code + said, shell + code + said):
            assert code_of(response) == "x = 1\n"
    assert code_of("```python\nx = 1\n```\nor\n```\nx = 2\n```") == "x = 2\n"


def test_where_isolation_fails_nothing_runs(monkeypatch, tmp_path):
    """Namespaces are refused: one line, and the program did not run."""
    child = tmp_path / "child.py"
    text = CHILD
    child.write_text(text.replace('call("unshare", ', 'call("unshare", 1 | '))
    monkeypatch.setattr(sandbox_child, "__file__", str(child))
    sandbox.require_isolation.cache_clear()
    with pytest.raises(
        ConfigError, match=r"cannot be isolated here \(unshare: .*\): verifier python is refused"
    ) as e:
        load_verifier("python")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("part", "instead", "what"),
    [
        ("NEW_MOUNTS | NEW_NETWORK |", "NEW_MOUNTS |", "the network"),
        ("resource.RLIMIT_NPROC: 0", "resource.RLIMIT_CORE: 0", "a new process"),
        ("os.setresuid(NOBODY, NOBODY, NOBODY)", "pass", "a new process|a privileged user"),
        ("resource.RLIMIT_AS: memory", "resource.RLIMIT_CORE: 0", "much memory"),
    ],
)
def test_isolation_that_leaks_is_noticed(part, instead, what, monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    text = CHILD
    assert part in text
    child.write_text(text.replace(part, instead))
    monkeypatch.setattr(sandbox_child, "__file__", str(child))
    sandbox.require_isolation.cache_clear()
    with pytest.raises(ConfigError, match=f"not kept from ({what}) here"):
        load_verifier("python")


@pytest.fixture(autouse=True)
def _tried_anew():
    yield
    sandbox.require_isolation.cache_clear()
