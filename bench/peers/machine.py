"""What a result must say of where it was measured."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first(path, prefix):
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(prefix):
            return line.partition(":")[2].strip()
    return None


def _revision():
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=True,
            capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe():
    return {
        "date": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
        "nfold_revision": _revision(),
        "torch": version("torch"),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
    }


def line_of(about):
    """One line for people."""
    return (f"{about['date']}, {about['cpu']}, {about['cores']} cores, "
            f"{about['memory']}, kernel {about['kernel']}, nfold "
            f"{about['nfold_revision']}. `{about['command']}`")
