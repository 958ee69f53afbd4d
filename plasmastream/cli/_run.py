"""Where every command ends: an error becomes one line on standard error and an exit status, here and nowhere else."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from cyclopts import App, CycloptsError

from plasmastream._errors import (
    LocalProtocolError,
    PeerError,
    PlasmastreamError,
    StoreConnectionError,
    TransferError,
)
from plasmastream._os_errors import reason_of


class ExitStatus(IntEnum):
    """What a command tells its caller; documented in the README."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    NOBODY_ANSWERS = 3
    """Nobody said no: the same may go well another time."""
    INTERRUPTED = 130
    """As a shell reports a process that SIGINT ended."""
    OUTPUT_CLOSED = 141
    """As a shell reports a process that SIGPIPE ended."""


class UsageError(Exception):
    """The command line, or a request on standard input, makes no sense."""


def run_app(app: App) -> NoReturn:
    """Run a command from this process's arguments, and exit."""
    run(
        app.name[0],
        lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value"),
    )


def run(program: str, command: Callable[[], object]) -> NoReturn:
    """Run a command, which may return an exit status, and exit."""
    _occupy_standard_streams()
    try:
        result = command()
        sys.stdout.flush()
        status = result if isinstance(result, int) else ExitStatus.DONE
    except BaseException as error:
        status = _conclude(program, error)
        _drop_output()
    sys.exit(status)


def _occupy_standard_streams() -> None:
    """Put something that fails in the place of standard streams that were closed.

    Otherwise the next file or socket that is opened becomes standard output.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)  # the lowest free number: this one
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r"))


def _drop_output() -> None:
    """Lose what could not be written, which must not fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(program: str, message: object) -> None:
    """Write one line to standard error."""
    with suppress(OSError):  # nobody is there to be told
        print(f"{program}: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A text in which what would steer a terminal is replaced: peers, files and processes have a part in some."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _conclude(program: str, raised: BaseException) -> int:
    causes = list(_single_errors(raised))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return ExitStatus.INTERRUPTED
    for cause in causes:
        match cause:
            case BrokenPipeError():
                return ExitStatus.OUTPUT_CLOSED
            case CycloptsError() | UsageError() | LocalProtocolError():
                complain(program, cause)
                return ExitStatus.WRONG_USAGE
            case TransferError():
                complain(program, cause)
                return ExitStatus.FAILED
            case StoreConnectionError() | PeerError():
                complain(program, cause)
                return ExitStatus.NOBODY_ANSWERS
            case PlasmastreamError():
                complain(program, cause)
                return ExitStatus.FAILED
            case OSError():
                complain(program, ": ".join(str(part) for part in (cause.filename, reason_of(cause)) if part))
                return ExitStatus.FAILED
    raise raised  # a bug, which should be seen whole


def _single_errors(error: BaseException) -> Iterator[BaseException]:
    """What nurseries have wrapped in groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _single_errors(inner)
    else:
        yield error
