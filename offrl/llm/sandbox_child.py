"""What runs in the process of a sandbox: isolate it, then run a program from standard input.

Started as ``python -I -S sandbox_child.py ROOT SECONDS BYTES`` with {"code", "mark"} as JSON on standard input; writes
the mark to standard output if the program ran to its end. Imports the standard library only.

In namespaces of its own (mounts, network, processes) it sees nothing but the interpreter's library, read-only, as an
unprivileged user without any capability. Limits: processor seconds, address space, no new processes or threads, no
bytes in files. Linux only. Exit status 3: isolation failed, the reason is on standard error.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable

NEW_MOUNTS, NEW_USER, NEW_PROCESSES, NEW_NETWORK, NEW_IPC = (
    0x20000,
    0x10000000,
    0x20000000,
    0x40000000,
    0x8000000,
)
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
NOBODY = 65534
FAILED = 3
PASSED, RAISED = 0, 1


def isolate(root: str, seconds: int, memory: int) -> None:
    """Everything that can be done before the program is known; returns in a child process.

    Raises:
        OSError: some of it is impossible here.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())

    user, group, is_root = os.getuid(), os.getgid(), os.geteuid() == 0
    call("unshare", NEW_MOUNTS | NEW_NETWORK | NEW_PROCESSES | NEW_IPC | (0 if is_root else NEW_USER))
    if not is_root:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    wait_for_child(os.fork())
    call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NO_SETUID | NO_DEVICES, "size=1m,mode=755")
    show_library(root, mount)
    mount("none", root, "", REMOUNT | READ_ONLY | NO_SETUID | NO_DEVICES)
    os.chroot(root)
    os.chdir("/")
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # a change of user clears it
    drop_capabilities(call)
    wait_for_child(os.fork())  # the first process of a namespace would not get the signals of its limits
    limit(seconds, memory)


def wait_for_child(child: int) -> None:
    """The parent waits, and leaves with the child's status."""
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else RAISED)


def show_library(root: str, mount: Callable[..., None]) -> None:
    """The interpreter's library and the system's, read-only, at their own paths under ``root``."""
    library = os.path.realpath(os.path.dirname(os.path.dirname(os.__file__)))
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", library):
        target = root + folder
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), target)
        elif os.path.isdir(folder) and not os.path.isdir(target):
            os.makedirs(target)
            mount(folder, target, "", BIND)
            mount("none", target, "", BIND | REMOUNT | READ_ONLY | NO_SETUID | NO_DEVICES)


def drop_capabilities(call: Callable[..., None]) -> None:
    """None are held, and none can be gained."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def limit(seconds: int, memory: int) -> None:
    """Of this process, for good."""
    import resource

    limits = {
        resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 32,
    }  # fmt: skip
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def main() -> int:
    """Isolate, run, say how it went."""
    root, seconds, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    given = json.loads(sys.stdin.read())
    report = os.dup(1)
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        isolate(root, seconds, memory)
    except OSError as error:
        sys.stderr.write(str(error.strerror or error))
        return FAILED
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    try:
        exec(compile(given["code"], "program", "exec"), {"__name__": "__main__"})
    except BaseException:  # SystemExit too: a program must come to its end
        os._exit(RAISED)
    os.write(report, given["mark"].encode())
    os._exit(PASSED)


if __name__ == "__main__":
    sys.exit(main())
