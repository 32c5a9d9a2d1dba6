"""What nfold must reach beside its peers: one table, and who judges by it.

A ratio compares the runs of one round. Against several peers it is the worst
of the medians: "twice as fast as the best" is "twice as fast as each".
"""

import dataclasses
import operator
import statistics

# At these the table was written: the configuration that all published figures
# of the peers have.
NUM_RANKS = 2
NUM_THREADS = 1

SPEED = "tokens_per_second"
MEMORY = "peak_pss_bytes"
FIRST_STEP = "first_step_seconds"
WORDS = {SPEED: "tokens/s", MEMORY: "peak memory", FIRST_STEP: "first step"}

STAGE_3_PEERS = ("fsdp2", "fsdp2-noreshard", "deepspeed-3",
                 "deepspeed-3-default")
# "At least" is for more-is-better measures, "at most" for the others.
RELATIONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le}


@dataclasses.dataclass(frozen=True)
class Requirement:
    """`who` by `measure`, over each of `against`, stands in `relation` to
    `bound`; against nobody it is the measure itself."""

    model: str
    who: str
    measure: str
    relation: str
    bound: float
    against: tuple = ()

    def __str__(self):
        if not self.against:
            return (f"{self.model}: {self.who}: {WORDS[self.measure]} "
                    f"{self.relation} {self.bound:g} s")
        best = self.against[0] if len(self.against) == 1 else (
            f"the best of {', '.join(self.against)}")
        return (f"{self.model}: {self.who}: {WORDS[self.measure]} "
                f"{self.relation} {self.bound:g} x {best}")


def _speed(model, who, bound, *against, relation=">="):
    return Requirement(model, who, SPEED, relation, bound, against)


def _memory(model, who, bound, *against):
    return Requirement(model, who, MEMORY, "<=", bound, against)


REQUIREMENTS = (
    _speed("medium", "nfold-3", 2.0, *STAGE_3_PEERS),
    _speed("medium", "nfold-1", 1.2, "zero1"),
    _speed("medium", "nfold-2", 1.2, "zero1"),
    _speed("medium", "nfold-1", 1.7, "deepspeed-1", "deepspeed-1-default"),
    _speed("medium", "nfold-2", 1.7, "deepspeed-2", "deepspeed-2-default"),
    _speed("medium", "nfold-0", 1.6, "ddp"),
    _speed("medium", "nfold-3", 1.0, "limit", "limit-torch"),
    _memory("medium", "nfold-3", 0.55, *STAGE_3_PEERS),
    _memory("medium", "nfold-2", 0.75, "deepspeed-2", "deepspeed-2-default"),
    _speed("small", "nfold-3", 1.2, *STAGE_3_PEERS),
    _speed("small", "nfold-3", 1.0, "ddp", relation=">"),
    _speed("small", "nfold-3", 0.97, "limit", "limit-torch"),
    Requirement("small", "nfold-3", FIRST_STEP, "<=", 2.5),
    Requirement("small", "nfold-3", FIRST_STEP, "<=", 0.6,
                ("ddp", "zero1", *STAGE_3_PEERS, "deepspeed-0", "deepspeed-1",
                 "deepspeed-1-default", "deepspeed-2",
                 "deepspeed-2-default")),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    requirement: Requirement
    # Median over the rounds, smallest and largest; None: not measured.
    ratio: tuple | None
    closest: str | None  # the peer that this is against
    missing: tuple = ()

    @property
    def is_met(self):
        return self.ratio is not None and not self.missing and RELATIONS[
            self.requirement.relation](self.ratio[0], self.requirement.bound)

    def __str__(self):
        if self.ratio is None or self.missing:
            return (f"not measured  {self.requirement}: no run of "
                    f"{', '.join(self.missing)}")
        middle, low, high = self.ratio
        spread = f" ({low:.2f}-{high:.2f})" if high > low else ""
        against = (f" against {self.closest}"
                   if len(self.requirement.against) > 1 else "")
        return (f"{'met         ' if self.is_met else 'NOT MET     '}  "
                f"{self.requirement}: {middle:.2f}{spread}{against}")


def by_round(runs, name):
    """The good runs of one contestant."""
    return {run["round"]: run for run in runs
            if run["contestant"] == name and not run.get("error")}


def ratio(mine, other, measure):
    """Median, smallest and largest over the rounds that both ran in; against
    None the value itself. None if there is no such round.

    Taken round by round: a machine that was slow for one round was slow for
    both.
    """
    ratios = [run[measure] / (other[number][measure] if other is not None
                              else 1.0)
              for number, run in mine.items()
              if other is None or number in other]
    return (statistics.median(ratios), min(ratios), max(ratios)
            ) if ratios else None


def _judge(requirement, runs):
    mine = by_round(runs, requirement.who)
    if not requirement.against:
        return Verdict(requirement, ratio(mine, None, requirement.measure),
                       None, () if mine else (requirement.who,))
    found = {name: ratio(mine, by_round(runs, name), requirement.measure)
             for name in requirement.against}
    missing = tuple(name for name, value in found.items() if value is None)
    if not mine:
        missing = (requirement.who,)
    found = {name: value for name, value in found.items() if value}
    worst = max if requirement.relation == "<=" else min
    closest = worst(found, key=lambda name: found[name][0], default=None)
    return Verdict(requirement, found.get(closest), closest, missing)


def judge(runs, requirements=REQUIREMENTS):
    """A Verdict for each requirement on a model that was measured with
    NUM_RANKS and NUM_THREADS."""
    verdicts = []
    for requirement in requirements:
        case = [run for run in runs
                if run["model"] == requirement.model and
                (run["ranks"], run["threads"]) == (NUM_RANKS, NUM_THREADS)]
        if case:
            verdicts.append(_judge(requirement, case))
    return verdicts
