"""Tables and the picture of a set of runs (the list that run.py collects)."""

import statistics

MIB = 2**20
# Everything on the machine counts here, so a little is always there.
MAX_OTHERS_CPU = 0.1
MAX_PEER_LOSS_DIFFERENCE = 1e-3
HEADER = ("contestant", "stage", "step ms", "spread", "tokens/s",
          "peak RSS MiB", "loopback MiB/step", "start s", "loss",
          "nfold: speed x", "nfold: memory x")


def _good(runs, name):
    return {run["round"]: run for run in runs
            if run["contestant"] == name and not run.get("error")}


def _ratio(nfold, peer, value):
    """Median over the rounds of nfold's value by the peer's, with spread.

    Taken round by round: a machine that was slow for one round was slow for
    both.
    """
    ratios = [value(nfold[r]) / value(peer[r]) for r in nfold if r in peer]
    if not ratios:
        return None
    return statistics.median(ratios), min(ratios), max(ratios)


def _ratio_text(ratio):
    if ratio is None:
        return "-"
    middle, low, high = ratio
    return f"{middle:.2f}" + (f" ({low:.2f}-{high:.2f})" if high > low else "")


def _ratios(runs, contestant):
    nfold = _good(runs, f"nfold-{contestant.stage}")
    peer = _good(runs, contestant.name)
    return (_ratio(nfold, peer, lambda run: run["tokens_per_second"]),
            _ratio(nfold, peer, lambda run: run["peak_rss_bytes"]))


def rows(runs, contestants):
    table = []
    for contestant in contestants:
        mine = [r for r in runs if r["contestant"] == contestant.name]
        good = list(_good(runs, contestant.name).values())
        if not mine:
            continue
        if not good:
            table.append((contestant.name, str(contestant.stage), "failed",
                          *[""] * (len(HEADER) - 3)))
            continue

        def middle(key):
            return statistics.median(run[key] for run in good)

        steps = [ms for run in good for ms in run["step_ms"]]
        speed, memory = _ratios(runs, contestant)
        table.append((
            contestant.name, str(contestant.stage),
            f"{statistics.median(r['median_step_ms'] for r in good):.0f}",
            f"{min(steps):.0f}-{max(steps):.0f}",
            f"{middle('tokens_per_second'):.0f}",
            f"{middle('peak_rss_bytes') / MIB:.0f}",
            f"{middle('wire_bytes_per_step') / MIB:.0f}",
            f"{middle('start_seconds'):.1f}",
            f"{good[-1]['loss']:.5f}",
            "" if contestant.is_nfold else _ratio_text(speed),
            "" if contestant.is_nfold else _ratio_text(memory)))
    return table


def _loss_lines(runs, contestants):
    lines = []
    for title, is_nfold, limit in (
            ("nfold's stages", True, 0.0),
            ("the peers", False, MAX_PEER_LOSS_DIFFERENCE)):
        names = {c.name for c in contestants if c.is_nfold == is_nfold}
        losses = [run["loss"] for run in runs
                  if run["contestant"] in names and not run.get("error")]
        if len(losses) > 1:
            difference = max(losses) - min(losses)
            verdict = "" if difference <= limit else (
                f"  <-- more than {limit:g}: they did different arithmetic")
            lines.append(f"Losses of {title} differ by at most "
                         f"{difference:.3g}.{verdict}")
    counts = sorted({(run["num_parameters"], run["contestant"][:5] == "nfold")
                     for run in runs if run.get("num_parameters")})
    for count, is_nfold in counts:
        lines.append(f"Parameters of {'nfold' if is_nfold else 'the peers'}: "
                     f"{count:,}.")
    return lines


def behind(runs, contestants):
    """Where nfold is not ahead, as text; and pairs that cannot be compared."""
    lines = []
    for contestant in contestants:
        if contestant.is_nfold or not _good(runs, contestant.name):
            continue
        for ratio, what, is_behind in zip(
                _ratios(runs, contestant), ("speed", "peak memory"),
                (lambda x: x <= 1, lambda x: x >= 1)):
            if ratio is not None and is_behind(ratio[0]):
                lines.append(f"nfold-{contestant.stage} is behind "
                             f"{contestant.name} in {what}: "
                             f"{_ratio_text(ratio)}")
    return lines


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


def notes(runs, contestants):
    """What a reader must know before believing the table."""
    lines = _loss_lines(runs, contestants)
    optimizers = {}
    for run in runs:
        if run.get("optimizer"):
            optimizers.setdefault(run["optimizer"], set()).add(
                run["contestant"])
    lines += [f"Optimizer {name}: {', '.join(sorted(who))}."
              for name, who in optimizers.items()]
    for run in runs:
        where = f"{run['contestant']}, round {run['round']}"
        if run.get("error"):
            lines.append(f"Failed: {where}: {run['error']}")
            continue
        lines += disturbances(run, where)
    return lines + behind(runs, contestants)


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


def picture(runs, contestants, title, path):
    """Bars: tokens/s and peak memory, with every round as a dot."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [c for c in sorted(contestants, key=lambda c: c.stage)
             if _good(runs, c.name)][::-1]
    figure, (speed, memory) = pyplot.subplots(
        1, 2, sharey=True, figsize=(10, 0.4 * len(shown) + 1.6))
    for axes, label, value in (
            (speed, "tokens/s (more is better)",
             lambda run: run["tokens_per_second"]),
            (memory, "peak RSS of a rank, MiB (less is better)",
             lambda run: run["peak_rss_bytes"] / MIB)):
        for y, contestant in enumerate(shown):
            values = [value(run) for run in
                      _good(runs, contestant.name).values()]
            middle = statistics.median(values)
            axes.barh(y, middle, height=0.7, color="#d1495b"
                      if contestant.is_nfold else "#9db4c0")
            axes.plot(values, [y] * len(values), "k.", markersize=3)
            axes.text(0, y, f" {middle:.0f}", va="center", fontsize=8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    speed.set_yticks(range(len(shown)),
                     [f"{c.name} (ZeRO {c.stage})" for c in shown])
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
