"""Whether all contestants computed the same: their losses, step by step.

All start from one file of weights and see the same tokens, which repeat, so
that the loss falls fast: who skips a reduction, an update or a part of the
batch ends elsewhere within a few steps. Compared are runs that take as many
tokens a step: those of as many ranks, and, of single processes and copies that
do not communicate, those of one rank.
"""

import dataclasses
import statistics

# By which part of itself a loss may differ from the reference, at any step.
# Roundings differ by the order of summation; Adam's first updates turn those of
# gradients near zero into whole ones, so that it grows with the steps.
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
# The plainest implementation, which everyone knows.
REFERENCE = "ddp"


@dataclasses.dataclass(frozen=True)
class Departure:
    """A run whose losses leave the reference, first at this step."""

    contestant: str
    model: str
    ranks: int
    round: int
    step: int
    loss: float
    reference: float
    tolerance: float

    def __str__(self):
        return (f"{self.contestant} computes something else: {self.model}, "
                f"{self.ranks} ranks, round {self.round}: the loss of step {self.step} is "
                f"{self.loss:.6g}, that of the reference {self.reference:.6g}; "
                f"expected to agree within {self.tolerance:g} of it.")


def precision_of(config):
    engine = config["engine"]
    for name in ("bf16", "fp16"):
        if (engine.get(name, {}).get("enabled") or
                config.get("train", {}).get("dtype") == name):
            return name
    return "fp32"


def _groups(runs):
    groups = {}
    for run in runs:
        if not run.get("error"):
            key = (run["model"], run["tokens_per_step"])
            groups.setdefault(key, []).append(run)
    return groups.values()


def reference_of(runs):
    """(who, losses): DDP's, or the median of all where DDP took no part."""
    plain = [run for run in runs if run["contestant"] == REFERENCE]
    who = REFERENCE if plain else "the median of all"
    return who, [statistics.median(losses) for losses in
                 zip(*(run["losses"] for run in plain or runs))]


def _departure(run, reference, tolerance):
    for step, (loss, expected) in enumerate(zip(run["losses"], reference), 1):
        if abs(loss - expected) > tolerance * abs(expected):
            return Departure(run["contestant"], run["model"], run["ranks"],
                             run["round"], step, loss, expected, tolerance)
    return None


def departures(runs, tolerance):
    found = []
    for group in _groups(runs):
        _, reference = reference_of(group)
        found += [departure for run in group
                  if (departure := _departure(run, reference, tolerance))]
    return found


def unequal_stages(runs):
    """Lines about stages of nfold whose losses are not the same bits."""
    lines, first = [], {}
    for run in runs:
        if run.get("error") or not run["contestant"].startswith("nfold-"):
            continue
        key = (run["model"], run["ranks"])
        other = first.setdefault(key, run)
        if run["losses"] != other["losses"]:
            lines.append(
                f"{run['contestant']}, {run['ranks']} ranks, round "
                f"{run['round']}: other losses than {other['contestant']}, "
                f"round {other['round']}; expected the same bits at every "
                "stage.")
    return lines


def notes(runs, tolerance):
    """How far apart the curves are, for every group of runs that compare."""
    lines = []
    for group in _groups(runs):
        if len(group) < 2:
            continue
        who, reference = reference_of(group)
        far = max(abs(loss - expected) / abs(expected) for run in group
                  for loss, expected in zip(run["losses"], reference))
        names = sorted({run["contestant"] for run in group})
        lines.append(
            f"{group[0]['model']}, {group[0]['tokens_per_step']} tokens a "
            f"step: losses from {reference[0]:.4f} to {reference[-1]:.4f}; "
            f"{', '.join(names)} stay within {far:.2g} of {who} at every step "
            f"(allowed: {tolerance:g}).")
    return lines
