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

import processes

POLL_SECONDS = 0.01
GRACE_SECONDS = 10
MIB = 2**20


class RunFailed(Exception):
    """A contestant gave no result; the text is what the table shows."""


@dataclasses.dataclass
class Result:
    """Of one run. step_ms and wall_ms hold the timed steps only."""

    step_ms: list
    wall_ms: list  # between two lines of metrics.jsonl, seen from outside
    tokens_per_second: float  # of all processes together
    peak_pss_bytes: int  # of the largest rank; in all but the timed steps
    peak_pss_bytes_by_rank: dict
    num_pss_samples: int
    peak_rss_bytes: int  # of the largest rank
    wire_bytes_per_step: float
    others_cpu: float  # processors that were busy with something else
    losses: list  # of every step
    tokens_per_step: int  # of one training; contestants with as many compare
    first_step_seconds: float  # from starting the processes to its end
    num_parameters: int | None
    optimizer: str | None
    settings: dict  # what a peer was really given
    comm: dict  # what rank 0 sent in the last step, by collective

    @property
    def median_step_ms(self):
        return statistics.median(self.step_ms)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, beyond what the contestant is."""

    num_warmup: int
    timeout_seconds: float
    # Steps at the end that are not timed; see PssSampler.
    num_memory_steps: int = 0
    pss_seconds: float = 0.2
    prefix: tuple = ()  # words before every command
    # Counts what has crossed the wire so far.
    wire_bytes: object = None
    # Processes that belong to the measurement although the contestant did not
    # start them.
    own_pids: tuple = ()


def loopback_bytes():
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise RunFailed("expected the interface lo in /proc/net/dev, found none")


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


def _end(running):
    """Asks the launchers, which end their ranks, then kills what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)


def _last_error(log):
    """The line that says most: the last exception that a rank raised."""
    lines = [line.strip() for line in
             log.read_text(errors="replace").splitlines()
             if line.strip("=- \t")]
    pattern = re.compile(r"\b\w*(Error|Exception)\b.*:|\berror\b|"
                         r"^terminate called", re.I)
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

    def __init__(self, path, counters):
        self.path = path
        self.counters = counters
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
                self.seen.extend([self.counters()] * num_lines)

    def records(self):
        if not self.path.exists():
            return []
        return [json.loads(line) for line in
                self.path.read_text().splitlines() if '"step_ms"' in line]


class _Run:
    """The processes of one run, and what watches them."""

    def __init__(self, contestant, setting, options):
        self.starts = contestant.starts(setting)
        self.options = options
        self.num_timed = (setting.num_steps - options.num_warmup -
                          options.num_memory_steps)
        self.log_path = setting.run_dir.with_suffix(".log")
        self.running = []
        self.watchers = []
        self.sampler = processes.PssSampler(options.pss_seconds)
        self.started = time.perf_counter()

    def _counters(self):
        own = processes.trees_seconds(
            [*(p.pid for p in self.running), *self.options.own_pids])
        wire_bytes = self.options.wire_bytes or loopback_bytes
        # This process looks at memory; see PssSampler.
        return _Sample(time.perf_counter(), wire_bytes(),
                       processes.busy_seconds() - own - time.process_time())

    def _start(self, log):
        for number, start in enumerate(self.starts):
            start.run_dir.parent.mkdir(parents=True, exist_ok=True)
            try:
                process = subprocess.Popen(
                    [*self.options.prefix, *start.command], stdout=log,
                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env=_environment(start.num_threads),
                    start_new_session=True)
            except OSError as error:
                raise RunFailed(f"cannot start {error.filename}: "
                                f"{error.strerror}") from error
            self.running.append(process)
            self.watchers.append(
                _Watcher(start.run_dir / "metrics.jsonl", self._counters))
            self.sampler.watch(process.pid, str(number), start.is_launched)

    def _wait(self):
        options = self.options
        while any(process.poll() is None for process in self.running):
            for watcher in self.watchers:
                watcher.look()
            num_seen = min(len(watcher.seen) for watcher in self.watchers)
            self.sampler.is_paused = (
                0 <= num_seen - options.num_warmup < self.num_timed)
            if time.perf_counter() - self.started > options.timeout_seconds:
                raise RunFailed(f"no end after {options.timeout_seconds:.0f} s "
                                f"({num_seen} steps)")
            time.sleep(POLL_SECONDS)
        for watcher in self.watchers:
            watcher.look()

    def __call__(self):
        with open(self.log_path, "wb") as log, self.sampler:
            try:
                self._start(log)
                self._wait()
            finally:
                _end(self.running)
        for process in self.running:
            if process.returncode != 0:
                raise RunFailed(f"exit code {process.returncode}: "
                                f"{_last_error(self.log_path)}")


def run(contestant, setting, options):
    """Runs to the end and returns a Result, or raises RunFailed."""
    if contestant.is_peer:  # nfold makes its own run directory
        setting.run_dir.mkdir(parents=True)
    this = _Run(contestant, setting, options)
    this()
    return _summarise(this, contestant, setting)


def record(contestant, setting, number, options):
    """run() as a dictionary: the fields of its Result, or "error"."""
    about = {"contestant": contestant.name, "round": number}
    try:
        result = run(contestant, setting, options)
    except RunFailed as error:
        return about | {"error": str(error)}
    return about | dataclasses.asdict(result) | {
        "median_step_ms": result.median_step_ms, "loss": result.losses[-1]}


def turns(who, num_rounds):
    """(round, contestant), turn by turn; rounds begin with different ones."""
    for number in range(1, num_rounds + 1):
        first = (number - 1) * len(who) // num_rounds
        for contestant in who[first:] + who[:first]:
            yield number, contestant


def _records(watcher, num_steps):
    records = watcher.records()
    if len(records) != num_steps or len(watcher.seen) < num_steps:
        raise RunFailed(f"expected {num_steps} steps in metrics.jsonl, "
                        f"found {len(records)}")
    for line in records:
        if line["loss"] is None or not math.isfinite(line["loss"]):
            raise RunFailed(f"the loss of step {line['step']} is "
                            f"{line['loss']}")
    return records


def _mean_by_step(lists):
    return [statistics.fmean(values) for values in zip(*lists)]


def _summarise(this, contestant, setting):
    num_warmup = this.options.num_warmup
    records = [_records(watcher, setting.num_steps)
               for watcher in this.watchers]
    timed = slice(num_warmup, num_warmup + this.num_timed)
    step_ms = [[line["step_ms"] for line in lines[timed]] for lines in records]
    # From the line of the last warm-up step to that of the last timed one.
    edges = [watcher.seen[num_warmup - 1:timed.stop]
             for watcher in this.watchers]
    first = min((e[0] for e in edges), key=lambda sample: sample.seconds)
    last = max((e[-1] for e in edges), key=lambda sample: sample.seconds)
    config = json.loads(setting.config.read_text())
    engine = config["engine"]
    tokens_per_rank = (engine["train_micro_batch_size_per_gpu"] *
                       engine.get("gradient_accumulation_steps", 1) *
                       config["data"]["sequence_length"])
    tokens_per_step = [tokens_per_rank * start.num_ranks
                       for start in this.starts]
    described = setting.run_dir / "peer.json"
    about = json.loads(described.read_text()) if described.exists() else {}
    last_line = records[0][-1]
    params_bytes = last_line["memory"].get("params_bytes")
    if params_bytes:  # of what a rank holds
        params_bytes *= contestant.num_shards(setting.num_ranks)
    return Result(
        step_ms=_mean_by_step(step_ms),
        wall_ms=_mean_by_step(
            [[(b.seconds - a.seconds) * 1e3 for a, b in zip(e, e[1:])]
             for e in edges]),
        tokens_per_second=sum(
            tokens * 1e3 / statistics.median(times)
            for tokens, times in zip(tokens_per_step, step_ms)),
        peak_pss_bytes=max(this.sampler.peaks.values(), default=0),
        peak_pss_bytes_by_rank=this.sampler.peaks,
        num_pss_samples=this.sampler.num_samples,
        peak_rss_bytes=max(line["memory"]["peak_rss_bytes"]
                           for lines in records for line in lines),
        wire_bytes_per_step=(
            (last.wire_bytes - first.wire_bytes) / this.num_timed),
        others_cpu=max(0.0, last.others_seconds - first.others_seconds) /
        max(last.seconds - first.seconds, 1e-9),
        losses=_mean_by_step([[line["loss"] for line in lines]
                              for lines in records]),
        tokens_per_step=tokens_per_step[0],
        first_step_seconds=max(watcher.seen[0].seconds
                               for watcher in this.watchers) - this.started,
        num_parameters=about.get("num_parameters",
                                 params_bytes and round(params_bytes / 4)),
        optimizer=about.get("optimizer", engine["optimizer"]["type"]),
        settings=about.get("settings", {}),
        comm=last_line.get("comm", {}),
    )
