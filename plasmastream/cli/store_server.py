"""`plasma-store-server`: our store, by the flags of Apache's command.

These are Google's flags: one dash or two, `-m 1000` or `-m=1000`, and `-h` is no help but huge pages.
"""

import os
import re
import sys
from collections.abc import Sequence

import attrs

from plasmastream import __version__
from plasmastream.cli._run import ExitStatus, complain

_PROGRAM = "plasma-store-server"
_HELP = f"""\
Usage: {_PROGRAM} -s SOCKET -m BYTES [-d DIRECTORY] [-h] [-e ENDPOINT]

Serve a store to the processes of this machine, until Ctrl-C or SIGTERM.
See also: plasmastream store.

  -s SOCKET     the Unix socket to serve at
  -m BYTES      what all objects together may have; a number without a suffix.
                Taken from the machine at the start
  -d DIRECTORY  take the memory from the file system of this directory, rather
                than from none
  -h            take huge pages, of which the machine must have enough
                (vm.nr_hugepages)
  -e ENDPOINT   hashtable://NAME: what is evicted goes to files in TMPDIR, and
                comes back. They last as long as the store; plasmastream store
                --spill names the directory, and keeps them
  -help         show this text
  -version      show the version

A flag may have two dashes, and its value may follow a "=".
Exit statuses: 0 done; 1 anything went wrong.
"""

_TEXTS = {"s", "m", "d", "e"}
_SWITCHES = {"h", "help", "version"}
_TRUE = {"1", "t", "true", "y", "yes"}
_FALSE = {"0", "f", "false", "n", "no"}
_DECIMAL = re.compile(r"[0-9]{1,19}")


@attrs.define
class Flags:
    """What the command line says: a text for each flag that has one, and the switches that are on."""

    texts: dict[str, str] = attrs.Factory(dict)
    switches: set[str] = attrs.Factory(set)


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Read flags as Google's library does. The last one of a name counts.

    Raises:
        ValueError: a flag is unknown, or lacks its value, or something is no flag.
    """
    flags = Flags()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        found = re.fullmatch(r"--?([A-Za-z]\w*)(?:=(.*))?", argument, re.DOTALL)
        if found is None:
            raise ValueError(f"{argument!r} is no flag; -help shows them")
        name, value = found[1], found[2]
        if name in _TEXTS:
            if value is None and not rest:
                raise ValueError(f"the flag -{name} needs a value; -help shows how")
            flags.texts[name] = rest.pop(0) if value is None else value
        elif name in _SWITCHES and (value or "true").lower() in _TRUE:
            flags.switches.add(name)
        elif name in _SWITCHES and value is not None and value.lower() in _FALSE:
            flags.switches.discard(name)
        elif name.removeprefix("no") in _SWITCHES and value is None:
            flags.switches.discard(name.removeprefix("no"))
        elif name in _SWITCHES:
            raise ValueError(f"the flag -{name} is true or false, not {value!r}")
        else:
            raise ValueError(f"there is no flag -{name}; -help shows them")
    return flags


def read_memory(text: str) -> int:
    """Read a number of bytes.

    Raises:
        ValueError: it is none, or less than 1 byte, or has a suffix.
    """
    memory = int(text) if _DECIMAL.fullmatch(text) else 0
    if not 0 < memory < 1 << 62:
        raise ValueError(f"-m takes a number of bytes without a suffix, not {text!r}")
    return memory


def read_external_store(text: str) -> bool:
    """Whether what is evicted is kept.

    Raises:
        ValueError: it names another store than the one that Apache's command knows.
    """
    name, separator, _ = text.partition("://")
    if text and (name, separator) != ("hashtable", "://"):
        raise ValueError(
            f"-e takes hashtable://NAME, not {text!r}; plasmastream store --spill DIRECTORY keeps what is evicted"
        )
    return bool(text)


def store_server() -> ExitStatus:
    """Do what the command line says."""
    try:
        flags = parse_flags(sys.argv[1:])
        if "help" in flags.switches:
            print(_HELP, end="")
            return ExitStatus.DONE
        if "version" in flags.switches:
            print(f"{_PROGRAM} version {__version__}")
            return ExitStatus.DONE
        path, memory_text = flags.texts.get("s", ""), flags.texts.get("m")
        if not path:
            raise ValueError("say with -s at which socket to serve")
        if memory_text is None:
            raise ValueError("say with -m how many bytes the store may have")
        memory = read_memory(memory_text)
        external = read_external_store(flags.texts.get("e", ""))
    except ValueError as error:
        complain(_PROGRAM, error)
        return ExitStatus.FAILED
    _serve(path, memory, flags.texts.get("d") or None, huge_pages="h" in flags.switches, external=external)
    return ExitStatus.DONE


def _serve(path: str, memory: int, directory: str | None, *, huge_pages: bool, external: bool) -> None:
    import trio

    from plasmastream._node import StoreOptions, run_store
    from plasmastream.cli._log import log_to_stderr

    log_to_stderr()
    spill = (os.environ.get("TMPDIR") or "/tmp") if external else None
    trio.run(run_store, path, StoreOptions(memory, directory, huge_pages, spill, spill_is_temporary=external))
