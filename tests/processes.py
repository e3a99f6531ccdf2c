"""The command line in a process of its own, forked from a server that has torch loaded, so that it can be killed at any
moment: a command takes a tenth of a second instead of three."""

import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mosaic_cli import app

PATIENCE = 300.0  # seconds; on a busy machine loading torch alone may take minutes
_WRITES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(  # what a command imports once it runs: the loops, and torch._dynamo for AdamW
    ["processes", "mosaic_cli.training.setup", "mosaic_cli.core.kernels.cpu", "torch._dynamo"]
)


@dataclass(frozen=True)
class Plan:
    """What befalls a command: at the n-th change it makes to the file system (1 is the first), a signal."""

    signals: dict[int, int] = field(default_factory=dict)
    largest_file: int | None = None
    """Bytes beyond which the system refuses to write, as a full disk does."""


@dataclass(frozen=True)
class Ended:
    code: int
    """Exit code, or minus the signal that ended it."""
    changes: int
    """Changes to the file system that it made."""
    text: str
    """Standard output and error."""


def command(*arguments: object, **plan: object) -> Ended:
    """Run `mosaic ARGUMENTS` in the current folder to its end."""
    return wait(start(*arguments, **plan))


def start(*arguments: object, **plan: object) -> multiprocessing.Process:
    """Begin `mosaic ARGUMENTS` in the current folder."""
    Path("changes").write_bytes(b"")
    process = _context.Process(target=_run, args=(["mosaic", *map(str, arguments)], os.getcwd(), Plan(**plan)))
    process.start()
    return process


def wait(process: multiprocessing.Process) -> Ended:
    """Wait for a begun command."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the command hangs"
    return Ended(process.exitcode, Path("changes").stat().st_size, Path("said").read_text())


def _run(argv: list[str], folder: str, plan: Plan) -> None:
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    torch.set_num_threads(1)  # one order of additions, whatever the machine
    if plan.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.largest_file, resource.RLIM_INFINITY))
    sys.argv, sys.dont_write_bytecode = argv, True
    sys.addaudithook(_watch(plan))
    sys.exit(app.run())


def _watch(plan: Plan):
    counter = os.open("changes", os.O_WRONLY | os.O_APPEND)

    def on_event(event: str, arguments: tuple) -> None:
        if not (event in _WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
            return
        if "__pycache__" in str(arguments[0]):  # where Numba tries whether it may write: nothing of the command's
            return
        os.write(counter, b".")
        number = plan.signals.get(os.fstat(counter).st_size)
        if number:
            os.kill(os.getpid(), number)

    return on_event
