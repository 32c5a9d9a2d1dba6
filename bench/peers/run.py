"""Measures nfold beside DDP, ZeroRedundancyOptimizer, FSDP2 and DeepSpeed.

    bench/peers/run.sh                       all, medium GPT, 3 rounds
    bench/peers/run.sh --quick               small GPT, 1 round, few steps
    bench/peers/run.sh --only nfold-2 fsdp2  some of them

All run on this machine over gloo and the loopback interface, one after the
other, several rounds, each round starting with another one: a phase in which
the machine is slow then hits everyone. Writes results.json (raw numbers),
results.md and results.png into the output folder, after every run.
"""

import argparse
import datetime
import json
import pathlib
import shlex
import sys

import contestants
import machine
import measure
import report

ROOT = contestants.ROOT
KNOWN = {c.name: c for c in
         (*contestants.CONTESTANTS, *contestants.ALTERNATIVES)}


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="bench/peers/run.sh", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("medium", "small"),
                        help="examples/bench-MODEL.json (default: medium)")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--steps", type=int, help="timed steps (default: 8)")
    parser.add_argument("--warmup", type=int, default=3,
                        help="steps before them (default: 3)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=KNOWN,
                        help="of: " + ", ".join(KNOWN))
    parser.add_argument("--quick", action="store_true",
                        help="small model, 1 round, 3 timed steps")
    parser.add_argument("--time-limit", type=float, default=300,
                        metavar="SECONDS", help="of one run (default: 300)")
    parser.add_argument("--output", type=pathlib.Path,
                        help="default: runs/bench-DATE")
    parser.add_argument("--nfold", type=pathlib.Path,
                        default=ROOT / "build/release/src/train/nfold")
    parser.add_argument("--nfold-set", action="append", default=[],
                        metavar="KEY=VALUE", help="more for nfold's --set")
    parser.add_argument("--prefix", type=shlex.split, default=[],
                        help="words before every command, such as a lock")
    parser.add_argument("--check", action="store_true",
                        help="fail where nfold is not ahead")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.model = arguments.model or ("small" if quick else "medium")
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.steps = arguments.steps or (3 if quick else 8)
    arguments.output = arguments.output or (
        ROOT / "runs" / f"bench-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if min(arguments.rounds, arguments.steps, arguments.warmup) < 1:
        parser.error("--rounds, --steps and --warmup must be at least 1")
    return arguments


def describe(arguments):
    """Everything that one needs to measure this again."""
    return machine.describe() | {
        "command": shlex.join(["bench/peers/run.sh", *sys.argv[1:]]),
        "model": arguments.model,
        "ranks": arguments.ranks,
        "threads": arguments.threads,
        "deepspeed": machine.version("deepspeed"),
    }


def title_of(about):
    return (f"{about['model']} GPT, {about['ranks']} ranks x "
            f"{about['threads']} thread, gloo over loopback, fp32, AdamW, "
            f"torch {about['torch']}, deepspeed {about['deepspeed']}")


def write(arguments, about, runs, who):
    table = report.rows(runs, who)
    notes = report.notes(runs, who)
    (arguments.output / "results.json").write_text(
        json.dumps(about | {"runs": runs}, indent=1) + "\n")
    (arguments.output / "results.md").write_text("\n".join([
        f"# {title_of(about)}", "",
        machine.line_of(about), "",
        report.markdown(table), "", *[f"- {line}" for line in notes], ""]))
    return table, notes


def one_run(arguments, contestant, number):
    """As a dictionary: the fields of measure.Result, or "error"."""
    setting = contestants.Setting(
        config=ROOT / f"examples/bench-{arguments.model}.json",
        run_dir=arguments.output / "logs" / f"{number}-{contestant.name}",
        num_steps=arguments.warmup + arguments.steps,
        num_ranks=arguments.ranks, nfold=arguments.nfold,
        nfold_assignments=tuple(arguments.nfold_set))
    return measure.record(
        contestant, setting, number, num_warmup=arguments.warmup,
        num_threads=arguments.threads, prefix=arguments.prefix,
        timeout_seconds=arguments.time_limit)


def say(run):
    if "error" in run:
        text = f"failed: {run['error']}"
    else:
        text = (f"{run['median_step_ms']:.0f} ms a step, "
                f"{run['tokens_per_second']:.0f} tokens/s, "
                f"{run['peak_rss_bytes'] / measure.MIB:.0f} MiB")
    print(f"round {run['round']}  {run['contestant']:16} {text}", flush=True)


def main():
    arguments = parse_arguments()
    who = ([KNOWN[name] for name in dict.fromkeys(arguments.only)]
           if arguments.only else list(contestants.CONTESTANTS))
    (arguments.output / "logs").mkdir(parents=True)
    about, runs = describe(arguments), []
    print(title_of(about), flush=True)
    try:
        for number, contestant in measure.turns(who, arguments.rounds):
            runs.append(one_run(arguments, contestant, number))
            say(runs[-1])
            write(arguments, about, runs, who)
    except KeyboardInterrupt:
        print("interrupted; what is there is reported", flush=True)
    if not runs:
        return 130
    table, notes = write(arguments, about, runs, who)
    print("", report.plain(table), "", *notes, "", sep="\n")
    if any("error" not in run for run in runs) and machine.version("matplotlib"):
        report.picture(runs, who, title_of(about),
                       arguments.output / "results.png")
    print(f"written to {arguments.output}")
    failed = any("error" in run for run in runs)
    return int(failed or (arguments.check and bool(report.behind(runs, who))))


if __name__ == "__main__":
    sys.exit(main())
