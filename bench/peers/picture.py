"""results.svg: everybody's tokens/s by those of the best peer, case by case."""

import statistics

import requirements

# All can be told from a white and from a black page; the page shows through.
NFOLD, PEER, BOUND = "#d1495b", "#6c8ebf", "#8a9a5b"
INK = "#808080"


def best_peer(runs, contestants):
    """The name of the peer with the most tokens/s; None without one."""
    speeds = {}
    for contestant in contestants:
        good = requirements.by_round(runs, contestant.name).values()
        if contestant.is_peer and good:
            speeds[contestant.name] = statistics.median(
                run["tokens_per_second"] for run in good)
    return max(speeds, key=speeds.get, default=None)


def bars(runs, contestants):
    """(contestant, median, one value for each round), by the best peer's; or
    tokens/s as they are where there is none."""
    best = best_peer(runs, contestants)
    found = []
    for contestant in contestants:
        mine = requirements.by_round(runs, contestant.name)
        other = requirements.by_round(runs, best) if best else None
        values = [run["tokens_per_second"] /
                  (other[number]["tokens_per_second"] if best else 1.0)
                  for number, run in mine.items()
                  if not best or number in other]
        if values:
            found.append((contestant, statistics.median(values), values))
    return found


def _colour(contestant):
    if contestant.is_peer:
        return PEER
    return BOUND if contestant.stage is None else NFOLD


def _draw(axes, runs, contestants, title):
    shown = bars(runs, contestants)[::-1]
    for y, (contestant, middle, values) in enumerate(shown):
        axes.barh(y, middle, height=0.7, color=_colour(contestant))
        axes.plot(values, [y] * len(values), ".", color=INK, markersize=3)
        axes.text(max(values), y, f"  {middle:.2f}", va="center", fontsize=8,
                  color=INK)
    best = best_peer(runs, contestants)
    if best:
        axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(f"tokens/s, {best} = 1" if best else "tokens/s", color=INK,
                    fontsize=8)
    axes.set_yticks(range(len(shown)), [
        c.name + ("" if c.stage is None else f" (ZeRO {c.stage})")
        for c, _, _ in shown], fontsize=8)
    axes.margins(x=0.12)  # room for the numbers
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def write(cases, contestants, title, path):
    """`cases`: (title, runs) of each model and number of ranks."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "nfold"  # the same file again
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    figure, grid = pyplot.subplots(
        lines, columns, squeeze=False,
        figsize=(5 * columns, lines * (0.26 * len(contestants) + 1.3)))
    for axes, case in zip(grid.flat, cases):
        _draw(axes, case[1], contestants, case[0])
    for axes in list(grid.flat)[len(cases):]:
        axes.set_visible(False)
    figure.suptitle(title, color=INK, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
