"""Who takes part, how many bytes must cross between hosts, and the table.

With H hosts of R ranks, N = H R, and P parameters of 4 bytes, all ranks of all
hosts together send to other hosts

  a gather of everything over the world      4 P (H - 1): every rank sends its
                                             shard, P / N, to one rank of each
                                             other host
    over messages alone                      4 P (N - R): to all ranks of them
  a reduce-scatter over the world            the same, if R is a power of two;
                                             else as over messages alone
  the all-reduce between replicas of MiCS    8 P (H - 1): the N / H ranks of a
                                             host share 2 B (H - 1) / H for a
                                             replica's B = 4 P bytes, H times
  a gather in 8 bits                         1.0156 / 4 of a gather: a byte for
                                             each element, 4 for each 256
  a reduction in 4 bits                      0.5313 P (H - 1): each rank sends
                                             the sums of its node, P / N to each
                                             of H - 1 others

Counted once, where they leave. What the interfaces count on top are headers
and acknowledgements.
"""

import dataclasses
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "bench/peers"), str(ROOT / "scripts")]

import report  # noqa: E402  (of bench/peers)
from contestants import Start  # noqa: E402

MIB = 2**20
PARAM_BYTES = 4
# Of an element in blocks of 256 and 128, each with a scale (see
# include/nfold/quantization.h).
CODED_WEIGHT_BYTES = 1 + 4 / 256
CODED_GRADIENT_BYTES = 0.5 + 4 / 128
# Headers and acknowledgements, by which more crosses than was sent.
MAX_HEADERS = 0.03
# hpZ gathers inside a node after a step's first gather, so at most half of the
# gathers cross, with micro batches fewer; a unit that forward uses twice may be
# gathered once more.
MAX_HPZ_SHARE = 0.55
# What crosses of the first timed step before its mark has been read is missing:
# of a gather in 8 bits, over before the model has computed much, up to this.
MAX_UNSEEN = 0.1
# The same of a whole step without hpZ.
MAX_UNSEEN_OF_STEP = 0.01
# Another order of summation than that of stage 3.
MAX_MICS_LOSS_DIFFERENCE = 1e-5
# Of 9 steps.
MAX_CODED_LOSS_DIFFERENCE = 0.02
# What quantization must save of the bytes that cross: of weights the scales and
# headers leave 3.9 of 4, of gradients the two hops add a factor of the ranks on
# a host.
MIN_WEIGHT_RATIO = 3.8
MIN_GRADIENT_RATIO = 7.0
MIN_MICS_SPEED = 2.0
HEADER = ("contestant", "step ms", "spread", "tokens/s", "crossed MiB/step",
          "of parameters", "of gradients, by formula", "peak RSS MiB", "loss",
          "speed x stage 3")

# Parameters go as soon as they were used, and none is small enough to stay: a
# model that fills the memory is gathered for forward and again for backward.
REGATHER = {"stage": 3, "overlap_comm": True, "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The hosts, and what a step is."""

    num_hosts: int = 2
    ranks_per_host: int = 2
    # Of a step; their sizes add up to the configuration's.
    num_micro_batches: int = 1
    # Every rank sends to every other, as over messages alone.
    is_flat: bool = False

    @property
    def num_ranks(self):
        return self.num_hosts * self.ranks_per_host

    @property
    def _far_ranks(self):
        return self.num_ranks - self.ranks_per_host

    @property
    def _far_hosts(self):
        return self.num_hosts - 1

    def gather_bytes(self, num_parameters):
        """Over the world, by formula."""
        copies = self._far_ranks if self.is_flat else self._far_hosts
        return PARAM_BYTES * num_parameters * copies

    def _reduction_bytes(self, num_parameters):
        sums_by_host = (not self.is_flat and
                        self.ranks_per_host.bit_count() == 1)
        copies = self._far_hosts if sums_by_host else self._far_ranks
        return PARAM_BYTES * num_parameters * copies

    def gradient_bytes(self, num_parameters, is_mics=False, is_coded=False):
        if is_mics:  # between replicas at the end of the step only
            return 2 * PARAM_BYTES * num_parameters * self._far_hosts
        if is_coded:
            return (CODED_GRADIENT_BYTES * num_parameters *
                    self._far_hosts * self.num_micro_batches)
        return self._reduction_bytes(num_parameters) * self.num_micro_batches

    def gathered_bytes(self, run):
        """What crosses of gathers, by what rank 0 sent in them."""
        return self.crossing_bytes(run["comm"]["all_gather"]["bytes"])

    def crossing_bytes(self, sent_bytes):
        """Of what one rank sent in gathers of the whole world."""
        if self.is_flat:
            return (sent_bytes * self.num_ranks * self._far_ranks /
                    (self.num_ranks - 1))
        # A shard to each other host, then the column's shards to the ranks of
        # this one.
        inside = self.num_hosts * (self.ranks_per_host - 1)
        return (sent_bytes * self.num_ranks * self._far_hosts /
                (self._far_hosts + inside))


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    shape: Shape
    zero: dict  # of engine.zero_optimization, besides REGATHER

    is_peer = False

    @property
    def is_mics(self):
        return "mics_shard_size" in self.zero

    @property
    def is_hpz(self):
        return "zero_hpz_partition_size" in self.zero

    @property
    def has_coded_weights(self):
        return self.zero.get("zero_quantized_weights", False)

    @property
    def has_coded_gradients(self):
        return self.zero.get("zero_quantized_gradients", False)

    @property
    def max_loss_difference(self):
        """Relative, from stage 3."""
        if self.has_coded_weights or self.has_coded_gradients:
            return MAX_CODED_LOSS_DIFFERENCE
        return MAX_MICS_LOSS_DIFFERENCE if self.is_mics else 0.0

    def gather_bytes(self, num_parameters):
        share = (CODED_WEIGHT_BYTES / PARAM_BYTES
                 if self.has_coded_weights else 1)
        return share * self.shape.gather_bytes(num_parameters)

    def gradient_bytes(self, num_parameters):
        return self.shape.gradient_bytes(num_parameters, self.is_mics,
                                         self.has_coded_gradients)

    def num_shards(self, num_ranks):
        """Of the parameters, over what a rank holds of them."""
        primary = self.zero.get("mics_shard_size", num_ranks)
        secondary = self.zero.get("zero_hpz_partition_size")
        share = (CODED_WEIGHT_BYTES / PARAM_BYTES
                 if self.has_coded_weights else 1)
        return 1 / (1 / primary + share / secondary) if secondary else primary

    def config(self, base, num_steps):
        """The configuration `base` with this contestant's settings."""
        engine = base["engine"]
        micro_batch, rest = divmod(engine["train_micro_batch_size_per_gpu"],
                                   self.shape.num_micro_batches)
        if rest or not micro_batch:
            raise ValueError(
                f"expected a number of micro batches that divides "
                f"{engine['train_micro_batch_size_per_gpu']}, found "
                f"{self.shape.num_micro_batches}")
        return base | {
            "train": base["train"] | {"steps": num_steps},
            "engine": engine | {
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": self.shape.num_micro_batches,
                "zero_optimization": REGATHER | self.zero}}

    def starts(self, setting):
        # A network that was chosen for this machine is none of the hosts'.
        return [Start(self._command(setting), setting.run_dir,
                      setting.num_ranks, num_threads=1, is_launched=True)]

    def _command(self, setting):
        return [sys.executable, str(ROOT / "scripts/hosts.py"), "each",
                setting.hosts, "--", "env", "-u", "GLOO_SOCKET_IFNAME",
                f"NFOLD_TRANSPORT={'gloo' if self.shape.is_flat else 'auto'}",
                str(setting.nfold), "launch", "--nnodes", "{count}",
                "--node-rank", "{number}", "--master-addr", "{first}",
                "--nproc", str(self.shape.ranks_per_host), "--",
                str(setting.nfold), "train", str(setting.config), "--run-dir",
                str(setting.run_dir)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run needs to know besides the contestant."""

    config: pathlib.Path
    run_dir: pathlib.Path
    num_steps: int
    num_ranks: int
    nfold: pathlib.Path
    hosts: str


def contestants(shape):
    hpz = {"zero_hpz_partition_size": shape.ranks_per_host}
    mics = {"mics_shard_size": shape.ranks_per_host}
    weights = {"zero_quantized_weights": True}
    gradients = {"zero_quantized_gradients": True}
    flat = dataclasses.replace(shape, is_flat=True)
    return [Contestant("stage3", shape, {}),
            Contestant("stage3-flat", flat, {}),
            Contestant("hpz", shape, hpz),
            Contestant("mics", shape, mics),
            Contestant("qwz", shape, weights),
            Contestant("qgz", shape, gradients),
            Contestant("zero++", shape, hpz | weights | gradients)]


def _good(runs, name):
    return {run["round"]: run for run in runs
            if run["contestant"] == name and not run.get("error")}


def parameter_bytes(run, contestant):
    """What crossed in a step besides the gradients."""
    return run["wire_bytes_per_step"] - contestant.gradient_bytes(
        run["num_parameters"])


def speed_ratios(runs, name):
    """Against stage 3, of the rounds in which both ran."""
    mine, plain = _good(runs, name), _good(runs, "stage3")
    return [mine[number]["tokens_per_second"] / run["tokens_per_second"]
            for number, run in plain.items() if number in mine]


def rows(runs, who):
    table = []
    for contestant in who:
        good = list(_good(runs, contestant.name).values())
        if not good:
            if any(run["contestant"] == contestant.name for run in runs):
                table.append((contestant.name, "failed",
                              *[""] * (len(HEADER) - 2)))
            continue

        def middle(value):
            return statistics.median(value(run) for run in good)

        steps = [ms for run in good for ms in run["step_ms"]]
        gradients = contestant.gradient_bytes(good[0]["num_parameters"])
        ratios = speed_ratios(runs, contestant.name)
        speed = (f"{statistics.median(ratios):.2f} "
                 f"({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-")
        table.append((
            contestant.name,
            f"{middle(lambda run: run['median_step_ms']):.0f}",
            f"{min(steps):.0f}-{max(steps):.0f}",
            f"{middle(lambda run: run['tokens_per_second']):.0f}",
            f"{middle(lambda run: run['wire_bytes_per_step']) / MIB:.1f}",
            f"{middle(lambda run: parameter_bytes(run, contestant)) / MIB:.1f}",
            f"{gradients / MIB:.1f}",
            f"{middle(lambda run: run['peak_rss_bytes']) / MIB:.0f}",
            f"{good[-1]['loss']:.5f}",
            "" if contestant.name == "stage3" else speed))
    return table


def _of_run(run):
    return f"{run['contestant']}, round {run['round']}"


def _wrong_bytes(run, contestant, stage3):
    """What is wrong with one run's bytes, or None; `stage3`: a run of it."""
    stage3_parameter_bytes = stage3 and (
        stage3["wire_bytes_per_step"] - contestant.shape.gradient_bytes(
            stage3["num_parameters"]))
    shape = contestant.shape
    crossed = run["wire_bytes_per_step"]
    of_parameters = parameter_bytes(run, contestant)
    gradients = crossed - of_parameters
    one_gather = contestant.gather_bytes(run["num_parameters"])
    headers = MAX_HEADERS * crossed
    if contestant.is_mics:
        if of_parameters > headers:
            return (f"{of_parameters / MIB:.1f} MiB cross besides the "
                    f"gradients; expected no parameter byte (headers: at most "
                    f"{headers / MIB:.1f} MiB)")
        if of_parameters < 0:
            return "expected all gradients to cross, found fewer bytes"
    elif contestant.is_hpz:
        if of_parameters < (1 - MAX_UNSEEN) * one_gather:
            return "expected a step's first gather to cross, found fewer bytes"
        most = (MAX_HPZ_SHARE / MIN_WEIGHT_RATIO
                if contestant.has_coded_weights else MAX_HPZ_SHARE)
        if (stage3_parameter_bytes and
                of_parameters > most * stage3_parameter_bytes):
            return (f"{of_parameters / stage3_parameter_bytes:.2f} of stage "
                    f"3's gather bytes cross; expected at most {most:.2f}")
    else:
        expected = gradients + shape.gathered_bytes(run)
        least = (1 - MAX_UNSEEN_OF_STEP) * expected
        if not least <= crossed <= expected + headers:
            return (f"{crossed / MIB:.1f} MiB cross; expected "
                    f"{expected / MIB:.1f} MiB by what rank 0 sent, and "
                    "headers")
        if expected - gradients < 2 * shape.num_micro_batches * one_gather:
            return "parameters were not gathered again for backward"
        return _too_little_saved(run, contestant, stage3)
    return None


def _too_little_saved(run, contestant, stage3):
    """Where quantization does not save what it must, or None."""
    shape = contestant.shape
    # By what was sent, which has been compared with what crossed.
    if contestant.has_coded_weights and stage3:
        ratio = shape.gathered_bytes(stage3) / shape.gathered_bytes(run)
        if ratio < MIN_WEIGHT_RATIO:
            return (f"gathers cross in {ratio:.2f} times fewer bytes than "
                    f"those of stage 3; expected {MIN_WEIGHT_RATIO:g}")
    if contestant.has_coded_gradients:
        # Less the gathers and their part of the headers.
        gathered = shape.gathered_bytes(run)
        coded = contestant.gradient_bytes(run["num_parameters"])
        of_gradients = (run["wire_bytes_per_step"] * coded /
                        (gathered + coded))
        ratio = shape.gradient_bytes(run["num_parameters"]) / of_gradients
        if ratio < MIN_GRADIENT_RATIO:
            return (f"gradients cross in {ratio:.2f} times fewer bytes than "
                    f"those of stage 3; expected {MIN_GRADIENT_RATIO:g}")
    return None


def violations(runs, who):
    """Where the bytes or the losses are not what they must be."""
    lines = []
    plain = _good(runs, "stage3")
    by_bytes = sorted(plain.values(), key=lambda r: r["wire_bytes_per_step"])
    stage3 = by_bytes[len(by_bytes) // 2] if by_bytes else None
    for contestant in who:
        for run in _good(runs, contestant.name).values():
            wrong = _wrong_bytes(run, contestant, stage3)
            if wrong:
                lines.append(f"Wrong: {_of_run(run)}: {wrong}")
            limit = contestant.max_loss_difference
            for other in plain.values():
                if abs(run["loss"] - other["loss"]) > limit * other["loss"]:
                    lines.append(f"Wrong: {_of_run(run)}: the loss is "
                                 f"{run['loss']}, that of stage 3 is "
                                 f"{other['loss']}")
                    break
    return lines


def slow(runs):
    """Where MiCS is not as much faster as it must be."""
    ratios = speed_ratios(runs, "mics")
    if not ratios or statistics.median(ratios) >= MIN_MICS_SPEED:
        return []
    return [f"Slow: mics has {statistics.median(ratios):.2f} times the speed "
            f"of stage3; expected at least {MIN_MICS_SPEED:g}"]


def notes(runs, who):
    """What a reader must know before believing the table."""
    lines = []
    for run in runs:
        if run.get("error"):
            lines.append(f"Failed: {_of_run(run)}: {run['error']}")
        else:
            lines += report.disturbances(run, _of_run(run))
    return lines + violations(runs, who) + slow(runs)
