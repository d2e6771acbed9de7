"""The ``offrl`` command: finds the command's module and hands over; only what needs torch loads it."""

import contextlib
import difflib
import importlib
import os
import signal
import sys

COMMANDS = {  # name -> module under offrl.commands, one line for the overview
    "train": ("train", "train an algorithm: offrl train ALGO --dataset URI, or --env ID"),
    "resume": ("train", "go on with stopped runs, bit for bit"),
    "sweep": ("sweep", "algorithms x datasets x settings x seeds, in one table"),
    "eval": ("eval", "roll out a policy: a run, an SB3 zip, random, your own"),
    "fqe": ("fqe", "estimate a policy's return from recorded data"),
    "diagnose": ("diagnose", "overestimation, Bellman errors, distance to the data of a run"),
    "collect": ("collect", "record a dataset with any policy"),
    "compose": ("compose", "one policy out of several frozen chunk policies (GPC)"),
    "serve": ("serve", "a policy or an environment for other Python environments of this machine"),
    "policy": ("policy", "policies on disk: renormalize their actions, convert other people's files"),
    "generate": ("generate", "draw synthetic trajectories from a trained model of a dataset"),
    "data": ("data", "list, show, check, convert, download or add datasets"),
    "report": ("report", "one HTML page from one or many runs"),
    "export": ("export", "a policy as ONNX, torch.export, a stable-baselines3 zip or for LeRobot"),
    "algos": ("algos", "list the algorithms; 'algos check FILE' tests your own"),
    "new": ("new", "start an algorithm of your own: offrl new algo NAME"),
    "inventory": ("inventory", "inventory control: optimal policies, trained ones, a company's orders"),
    "llm": ("llm", "language models by policy gradients: offrl llm train grpo --task t1"),
    "doctor": ("doctor", "what is installed, what is missing, what to do"),
}


def overview() -> str:
    """The text of ``offrl --help``."""
    lines = [
        "usage: offrl COMMAND ...",
        "",
        "Offline and continuous-control reinforcement learning: train, resume, evaluate, collect, report.",
        "",
        "commands ('offrl COMMAND --help' explains each):",
    ]
    lines += [f"  {name:9} {about}" for name, (_, about) in COMMANDS.items()]
    lines += [
        "",
        "first steps:",
        "  offrl train prdc --dataset builtin:double-pendulum-demo --steps 10000",
        "  offrl report runs/prdc/double-pendulum-demo/* --out report.html",
        "",
        "exit codes: 0 done, 1 failed (one line says why), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    code = run(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the interpreter ends now: an impatient second Ctrl-C has nothing left to stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def run(argv: list[str]) -> int:
    """Find the command and run it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        with contextlib.suppress(BrokenPipeError):
            print(overview(), flush=True)
        return 0 if argv else 2
    if argv[0] in ("--version", "-V"):
        from offrl import __version__

        print(f"offrl {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"offrl: unknown command {name!r}{hint} ('offrl --help' lists all)", file=sys.stderr)
        return 2
    return _guarded(name, rest)


def _guarded(name: str, rest: list[str]) -> int:
    """Turn a user's error into one line and exit code 1; a program error keeps its traceback."""
    from offrl.errors import USER_ERRORS, Stopped, UsageError

    try:
        module = importlib.import_module(f"offrl.commands.{COMMANDS[name][0]}")
        code: int = module.main([name, *rest] if COMMANDS[name][0] != name else rest)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # tyro printed a help page
        return leaving.code if isinstance(leaving.code, int) else 0
    except UsageError as error:
        print(f"offrl: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"offrl: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("offrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output went away
        return 1
    except USER_ERRORS as error:
        print(f"offrl: {one_line(error)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"offrl: not enough memory: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with the file of an OSError and the error's notes."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(f) for f in (error.filename, error.filename2) if f)
        text = f"{error.strerror}: {files}" if files else error.strerror
    text = "; ".join([text, *getattr(error, "__notes__", [])])
    return " ".join(text.split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
