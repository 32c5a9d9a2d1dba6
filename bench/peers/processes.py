"""What /proc tells of the processes of a run: time, memory, who is a rank."""

import contextlib
import os
import pathlib
import threading

KIB = 1024


def busy_seconds():
    """Processor time of all processes of this machine.

    Without interrupts: the loopback traffic of the contestants is there.
    """
    user, nice, system = map(
        int, pathlib.Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _read_all():
    """Of every process: its parent, and the ticks that it has used."""
    parents, ticks = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid] = int(fields[1])
            ticks[pid] = int(fields[11]) + int(fields[12])
    return parents, ticks


def _tree(root, parents):
    children = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid in parents:
            found.append(pid)
        waiting += children.get(pid, [])
    return found


def trees_seconds(roots):
    """Processor time that `roots` and their living descendants have used."""
    parents, ticks = _read_all()
    return sum(ticks[pid] for root in roots for pid in _tree(root, parents)
               ) / os.sysconf("SC_CLK_TCK")


def rank_of(pid):
    """From the environment that its launcher gave it; None without one."""
    with contextlib.suppress(OSError):
        for entry in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(
                b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return None


def pss_bytes(pid):
    """Memory of a process, pages that several share counted by their part."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(
                ).splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * KIB
    return 0


class PssSampler:
    """The largest proportional set size of each rank, looked at from outside.

        with PssSampler(0.2) as sampler:
            sampler.watch(process.pid, "0", is_launched=False)
            ...
        sampler.peaks   # {"0": bytes}

    Looking takes the kernel 25 ms for a GiB in small pages, so that it does
    not look while is_paused is set. A rank's own children count with it.
    """

    def __init__(self, seconds):
        self.seconds = seconds
        self.peaks = {}
        self.num_samples = 0
        self.is_paused = False
        self._roots = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def watch(self, root, name, is_launched):
        """is_launched: the ranks are those descendants that have a RANK, each
        a process of its own here; else root is the only one."""
        self._roots.append((root, name, is_launched))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.wait(self.seconds):
            if not self.is_paused:
                self.look()

    def look(self):
        parents, _ = _read_all()
        for root, name, is_launched in list(self._roots):
            sums = {}
            for pid in _tree(root, parents):
                rank = rank_of(pid) if is_launched else 0
                if rank is not None:
                    key = f"{name}.{rank}" if is_launched else name
                    sums[key] = sums.get(key, 0) + pss_bytes(pid)
            for key, num_bytes in sums.items():
                self.peaks[key] = max(self.peaks.get(key, 0), num_bytes)
        self.num_samples += 1
