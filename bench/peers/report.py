"""Tables and notes of a set of runs (the list that run.py collects)."""

import json
import statistics

import requirements

MIB = 2**20
# Everything on the machine counts here, so a little is always there.
MAX_OTHERS_CPU = 0.1
HEADER = ("contestant", "stage", "step ms", "spread", "tokens/s",
          "peak PSS MiB", "loopback MiB/step", "first step s", "loss",
          "nfold: speed x", "nfold: memory x")


def ratio_text(ratio):
    if ratio is None:
        return "-"
    middle, low, high = ratio
    return f"{middle:.2f}" + (f" ({low:.2f}-{high:.2f})" if high > low else "")


def _ratios(runs, contestant):
    """nfold's at the same stage by the peer's; empty for others."""
    if not contestant.is_peer:
        return "", ""
    nfold = requirements.by_round(runs, f"nfold-{contestant.stage}")
    peer = requirements.by_round(runs, contestant.name)
    return tuple(ratio_text(requirements.ratio(nfold, peer, measure))
                 for measure in (requirements.SPEED, requirements.MEMORY))


def rows(runs, contestants, departed=()):
    """Of the runs of one model with one number of ranks. `departed`: names of
    those who computed something else."""
    table = []
    for contestant in contestants:
        mine = [r for r in runs if r["contestant"] == contestant.name]
        good = list(requirements.by_round(runs, contestant.name).values())
        if not mine:
            continue
        stage = "" if contestant.stage is None else str(contestant.stage)
        if not good:
            table.append((contestant.name, stage, "failed",
                          *[""] * (len(HEADER) - 3)))
            continue

        def middle(key):
            return statistics.median(run[key] for run in good)

        steps = [ms for run in good for ms in run["step_ms"]]
        table.append((
            contestant.name, stage,
            f"{middle('median_step_ms'):.0f}",
            f"{min(steps):.0f}-{max(steps):.0f}",
            f"{middle('tokens_per_second'):.0f}",
            f"{middle('peak_pss_bytes') / MIB:.0f}",
            f"{middle('wire_bytes_per_step') / MIB:.0f}",
            f"{middle('first_step_seconds'):.2f}",
            f"{good[-1]['loss']:.5f}" +
            (" computes something else" if contestant.name in departed
             else ""),
            *_ratios(runs, contestant)))
    return table


def disturbances(run, where):
    """Why the run's figures may prove nothing, as lines."""
    lines = []
    if run["others_cpu"] > MAX_OTHERS_CPU:
        lines.append(f"Disturbed: {where}: other processes used "
                     f"{run['others_cpu']:.2f} processors meanwhile.")
    wall = statistics.median(run["wall_ms"])
    if wall > 1.05 * run["median_step_ms"] + 20:
        lines.append(f"Incomplete: {where}: a step takes {wall:.0f} ms from "
                     f"outside, {run['median_step_ms']:.0f} ms by its own "
                     "clock.")
    return lines


def case_text(run):
    def count(number, word):
        return f"{number} {word}{'s' if number != 1 else ''}"

    return (f"{run['model']} GPT, {count(run['ranks'], 'rank')} x "
            f"{count(run['threads'], 'thread')}")


def notes(runs):
    """What a reader must know before believing the tables."""
    lines = []
    for model in dict.fromkeys(run["model"] for run in runs):
        counts = {run["num_parameters"] for run in runs
                  if run["model"] == model and run.get("num_parameters")}
        lines.append(f"Parameters of {model}: " +
                     ", ".join(f"{count:,}" for count in sorted(counts)) + ".")
    for run in runs:
        where = f"{case_text(run)}, {run['contestant']}, round {run['round']}"
        if run.get("error"):
            lines.append(f"Failed: {where}: {run['error']}")
        else:
            lines += disturbances(run, where)
    return lines


def settings(runs, contestants):
    """What each contestant was given, one line each."""
    lines = []
    for contestant in contestants:
        good = [run for run in runs if run["contestant"] == contestant.name
                and not run.get("error")]
        if good:
            used = good[0]["settings"]
            lines.append(f"{contestant.name}: {contestant.about}; optimizer "
                         f"{good[0]['optimizer']}" +
                         (f"; {json.dumps(used)}" if used else ""))
    return lines


def plain(table, header=HEADER):
    widths = [max(len(row[i]) for row in (header, *table))
              for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths)))
        for row in (header, *table))


def markdown(table, header=HEADER):
    lines = [header, ["---"] * len(header), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
