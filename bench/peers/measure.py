"""One run of one contestant: start it, watch its metrics, end it in time."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

POLL_SECONDS = 0.01
GRACE_SECONDS = 10
MIB = 2**20


class RunFailed(Exception):
    """A contestant gave no result; the text is what the table shows."""


@dataclasses.dataclass
class Result:
    """Of one run. Lists hold the timed steps only, without the warm-up."""

    step_ms: list
    wall_ms: list  # between two lines of metrics.jsonl, seen from outside
    tokens_per_second: float
    peak_rss_bytes: int
    wire_bytes_per_step: float
    others_cpu: float  # processors that were busy with something else
    loss: float
    start_seconds: float  # from starting the processes to the first step
    num_parameters: int | None
    optimizer: str | None
    comm: dict  # what rank 0 sent in the last step, by collective

    @property
    def median_step_ms(self):
        return statistics.median(self.step_ms)


def loopback_bytes():
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RunFailed("expected the interface lo in /proc/net/dev, found none")


def _busy_seconds():
    """Processor time of all processes of this machine.

    Without interrupts: the loopback traffic of the contestants is there.
    """
    user, nice, system = map(
        int, pathlib.Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _tree_seconds(root):
    """Processor time that `root` and its living descendants have used."""
    ticks, children = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            ticks[pid] = int(fields[11]) + int(fields[12])
            children.setdefault(int(fields[1]), []).append(pid)
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def _environment(num_threads):
    bin_dir = pathlib.Path(sys.prefix) / "bin"
    return os.environ | {
        "OMP_NUM_THREADS": str(num_threads),
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        # Operators built beforehand by run.sh, and ninja to check them.
        "TORCH_EXTENSIONS_DIR": f"{sys.prefix}/torch_extensions",
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }


def _end(process):
    """Asks the launcher, which ends its ranks, then kills what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


def _last_error(log):
    """The line that says most: the last exception that a rank raised."""
    lines = [line.strip() for line in
             log.read_text(errors="replace").splitlines() if line.strip()]
    pattern = re.compile(r"\b\w*(Error|Exception)\b.*:|\berror\b", re.I)
    launcher = re.compile(r"ChildFailedError|elastic|error_file|Failures:")
    told = [line for line in lines
            if pattern.search(line) and not launcher.search(line)]
    return (told or lines or ["no output"])[-1][:300]


@dataclasses.dataclass
class _Sample:
    """The counters when one line of metrics.jsonl appeared."""

    seconds: float
    wire_bytes: int
    others_seconds: float


class _Watcher:
    """Samples the machine when a line of metrics.jsonl appears."""

    def __init__(self, path, pids, wire_bytes):
        self.path = path
        self.pids = pids
        self.wire_bytes = wire_bytes
        self.seen = []
        self._position = 0

    def look(self):
        with contextlib.suppress(FileNotFoundError):
            with open(self.path, "rb") as metrics:
                metrics.seek(self._position)
                text = metrics.read()
            num_lines = text.count(b"\n")
            self._position += text.rfind(b"\n") + 1
            if num_lines:
                own_seconds = sum(map(_tree_seconds, self.pids))
                now = _Sample(time.perf_counter(), self.wire_bytes(),
                              _busy_seconds() - own_seconds)
                self.seen.extend([now] * num_lines)

    def records(self):
        if not self.path.exists():
            return []
        return [json.loads(line) for line in
                self.path.read_text().splitlines() if '"step_ms"' in line]


def run(contestant, setting, *, num_warmup, num_threads, timeout_seconds,
        prefix=(), wire_bytes=loopback_bytes, own_pids=()):
    """Runs to the end and returns a Result, or raises RunFailed.

    wire_bytes() counts what has crossed the wire so far; the processes
    own_pids belong to the measurement although the contestant did not start
    them.
    """
    log_path = setting.run_dir.with_suffix(".log")
    if not contestant.is_nfold:  # nfold makes its own run directory
        setting.run_dir.mkdir(parents=True)
    started = time.perf_counter()
    with open(log_path, "wb") as log:
        try:
            process = subprocess.Popen(
                [*prefix, *contestant.command(setting)], stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=_environment(num_threads), start_new_session=True)
        except OSError as error:
            raise RunFailed(f"cannot start {error.filename}: "
                            f"{error.strerror}") from error
        watcher = _Watcher(setting.run_dir / "metrics.jsonl",
                           (process.pid, *own_pids), wire_bytes)
        try:
            while process.poll() is None:
                watcher.look()
                if time.perf_counter() - started > timeout_seconds:
                    raise RunFailed(f"no end after {timeout_seconds:.0f} s "
                                    f"({len(watcher.seen)} steps)")
                time.sleep(POLL_SECONDS)
            watcher.look()
        finally:
            _end(process)
    if process.returncode != 0:
        raise RunFailed(f"exit code {process.returncode}: "
                        f"{_last_error(log_path)}")
    return _summarise(watcher, contestant, setting, started, num_warmup)


def record(contestant, setting, number, **options):
    """run() as a dictionary: the fields of its Result, or "error"."""
    about = {"contestant": contestant.name, "round": number}
    try:
        result = run(contestant, setting, **options)
    except RunFailed as error:
        return about | {"error": str(error)}
    return about | dataclasses.asdict(result) | {
        "median_step_ms": result.median_step_ms}


def turns(who, num_rounds):
    """(round, contestant), turn by turn; rounds begin with different ones."""
    for number in range(1, num_rounds + 1):
        first = (number - 1) * len(who) // num_rounds
        for contestant in who[first:] + who[:first]:
            yield number, contestant


def _summarise(watcher, contestant, setting, started, num_warmup):
    records, seen = watcher.records(), watcher.seen
    if len(records) != setting.num_steps or len(seen) < len(records):
        raise RunFailed(f"expected {setting.num_steps} steps in metrics.jsonl, "
                        f"found {len(records)}")
    loss = records[-1]["loss"]
    if loss is None or not math.isfinite(loss):
        raise RunFailed(f"the last loss is {loss}")
    timed = records[num_warmup:]
    # Between the line of the last warm-up step and that of the last step.
    edges = seen[num_warmup - 1:len(records)]
    first, last = edges[0], edges[-1]
    seconds = last.seconds - first.seconds
    step_ms = [record["step_ms"] for record in timed]
    config = json.loads(setting.config.read_text())
    engine = config["engine"]
    tokens_per_step = (engine["train_micro_batch_size_per_gpu"] *
                       engine.get("gradient_accumulation_steps", 1) *
                       config["data"]["sequence_length"] * setting.num_ranks)
    described = setting.run_dir / "peer.json"
    about = json.loads(described.read_text()) if described.exists() else {}
    params_bytes = records[-1]["memory"].get("params_bytes")
    if params_bytes:  # of what a rank holds
        params_bytes *= contestant.num_shards(setting.num_ranks)
    return Result(
        step_ms=step_ms,
        wall_ms=[(b.seconds - a.seconds) * 1e3
                 for a, b in zip(edges, edges[1:])],
        tokens_per_second=tokens_per_step * 1e3 / statistics.median(step_ms),
        peak_rss_bytes=max(r["memory"]["peak_rss_bytes"] for r in records),
        wire_bytes_per_step=(
            (last.wire_bytes - first.wire_bytes) / len(timed)),
        others_cpu=max(0.0, last.others_seconds - first.others_seconds) /
        max(seconds, 1e-9),
        loss=loss,
        start_seconds=seen[0].seconds - started - records[0]["step_ms"] / 1e3,
        num_parameters=about.get("num_parameters",
                                 params_bytes and round(params_bytes / 4)),
        optimizer=about.get("optimizer", engine["optimizer"]["type"]),
        comm=records[-1].get("comm", {}),
    )
