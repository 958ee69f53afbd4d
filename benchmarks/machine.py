"""What figures were measured on, and with."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from benchmarks.processes import APACHE_PYTHON, RIVALS_PYTHON, ROOT

_OURS = ("plasmastream", "trio", "anyio", "attrs", "xxhash")


def machine() -> dict[str, str]:
    """The processor, its cores that we may use, memory, and the kernel."""
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ": unknown")
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "MemTotal: 0 kB")
    return {
        "processor": cpu.partition(":")[2].strip(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory.split()[1]) / (1 << 20):.0f} GiB",
        "kernel": platform.release(),
        "load": f"{os.getloadavg()[0]:.1f} when this began",
    }


def versions() -> dict[str, str]:
    """Of Python, of what runs in its process, and of the rivals that are installed."""
    found = {"Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _OURS}
    for label, python, names in (
        ("Apache", APACHE_PYTHON, ["pyarrow"]),
        ("rivals", RIVALS_PYTHON, ["pyarrow", "grpcio"]),
    ):
        if python.exists():
            tell = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
            numbers = _output([str(python), "-c", tell, *names]).split()
            found |= {f"{name} ({label})": number for name, number in zip(names, numbers, strict=False)}
    if shutil.which("iperf3"):
        found["iperf3"] = _output(["iperf3", "--version"]).split()[1]
    return found


def commit() -> str:
    """The commit that was measured, and whether anything was changed since."""
    changed = _output(["git", "status", "--porcelain", "--", "plasmastream", "benchmarks/*.py"])
    return _output(["git", "rev-parse", "--short=12", "HEAD"]).strip() + (" and changes" if changed else "")


def _output(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
