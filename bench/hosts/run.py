"""Stage 3, hpZ, MiCS and quantization on test hosts that a slow network joins.

    bench/hosts/run.sh                      2 hosts x 2 ranks, 1 Gbit/s, 0.1 ms
    bench/hosts/run.sh --micro-batches 1    the step's batch at once
    bench/hosts/run.sh --only stage3 mics

All run on this machine, in network namespaces (scripts/hosts.py; takes root),
one after the other, several rounds, each starting with another one. Parameters
are gathered anew for backward everywhere. Bytes are those that the interfaces
of the hosts counted during the timed steps, each once, where it leaves.
Writes results.json and results.md into the output folder after every run.
Exit status 1: a run failed, or bytes crossed that must not.
"""

import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys

import crossing

# Of bench/peers and scripts, whose folders crossing has added.
import hosts
import machine
import measure
import report

ROOT = crossing.ROOT
NAMES = [c.name for c in crossing.contestants(crossing.Shape())]


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="bench/hosts/run.sh", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("medium", "small"), default="small",
                        help="examples/bench-MODEL.json (default: small)")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2, help="on each host")
    parser.add_argument("--rate", default="1gbit", help="of each host's "
                        "network, in tc's words (default: 1gbit)")
    parser.add_argument("--delay", default="0.1ms",
                        help="one way (default: 0.1ms)")
    parser.add_argument("--micro-batches", type=int, default=4, metavar="K",
                        help="cut a rank's batch into K parts, whose gradients "
                        "accumulate (default: 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3,
                        help="steps before them")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES,
                        help="of: " + ", ".join(NAMES))
    parser.add_argument("--time-limit", type=float, default=300,
                        metavar="SECONDS", help="of one run (default: 300)")
    parser.add_argument("--output", type=pathlib.Path,
                        help="default: runs/hosts-DATE")
    parser.add_argument("--nfold", type=pathlib.Path,
                        default=ROOT / "build/release/src/train/nfold")
    parser.add_argument("--check", action="store_true",
                        help="fail also where MiCS is not "
                        f"{crossing.MIN_MICS_SPEED:g} x as fast as stage 3")
    arguments = parser.parse_args()
    arguments.output = arguments.output or (
        ROOT / "runs" / f"hosts-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if min(arguments.rounds, arguments.steps, arguments.warmup) < 1:
        parser.error("--rounds, --steps and --warmup must be at least 1")
    if min(arguments.hosts, arguments.ranks) < 2:
        parser.error("--hosts and --ranks must be at least 2")
    return arguments


def describe(arguments):
    """Everything that one needs to measure this again."""
    return machine.describe() | {
        "command": shlex.join(["bench/hosts/run.sh", *sys.argv[1:]]),
        "model": arguments.model,
        "hosts": arguments.hosts,
        "ranks_per_host": arguments.ranks,
        "rate": arguments.rate,
        "delay": arguments.delay,
        "micro_batches": arguments.micro_batches,
    }


def title_of(about):
    return (f"{about['model']} GPT, {about['hosts']} test hosts x "
            f"{about['ranks_per_host']} ranks x 1 thread, {about['rate']} and "
            f"{about['delay']} one way between them, gloo, fp32, AdamW, "
            f"{about['micro_batches']} micro batches a step, torch "
            f"{about['torch']}")


def write(arguments, about, runs, who):
    table = crossing.rows(runs, who)
    notes = crossing.notes(runs, who)
    (arguments.output / "results.json").write_text(
        json.dumps(about | {"runs": runs}, indent=1) + "\n")
    (arguments.output / "results.md").write_text("\n".join([
        f"# {title_of(about)}", "", machine.line_of(about), "",
        report.markdown(table, crossing.HEADER), "",
        *[f"- {line}" for line in notes], ""]))
    return table, notes


def up(arguments):
    """The state of new hosts, which end with this process."""
    done = subprocess.run(
        [sys.executable, hosts.__file__, "up", str(arguments.hosts), "--rate",
         arguments.rate, "--delay", arguments.delay],
        capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return hosts.load(done.stdout.strip())


def one_run(arguments, state, contestant, number):
    """As a dictionary: the fields of measure.Result, or "error"."""
    name = f"{number}-{contestant.name}"
    num_steps = arguments.warmup + arguments.steps
    base = json.loads(
        (ROOT / f"examples/bench-{arguments.model}.json").read_text())
    config = arguments.output / "logs" / f"{name}.json"
    config.write_text(
        json.dumps(contestant.config(base, num_steps), indent=1) + "\n")
    setting = crossing.Setting(
        config=config, run_dir=config.with_suffix(""), num_steps=num_steps,
        num_ranks=contestant.shape.num_ranks, nfold=arguments.nfold,
        hosts=state["hosts"][0]["name"].rpartition("-")[0])

    def sent_bytes():
        return sum(host["sent_bytes"]
                   for host in hosts.counters(state).values())

    # The hosts' keeper carries the frames.
    return measure.record(contestant, setting, number, measure.Options(
        num_warmup=arguments.warmup, timeout_seconds=arguments.time_limit,
        wire_bytes=sent_bytes, own_pids=(state["keeper"],)))


def say(run):
    if "error" in run:
        text = f"failed: {run['error']}"
    else:
        text = (f"{run['median_step_ms']:.0f} ms a step, "
                f"{run['tokens_per_second']:.0f} tokens/s, "
                f"{run['wire_bytes_per_step'] / crossing.MIB:.1f} MiB a step "
                "between hosts")
    print(f"round {run['round']}  {run['contestant']:8} {text}", flush=True)


def main():
    arguments = parse_arguments()
    shape = crossing.Shape(arguments.hosts, arguments.ranks,
                           arguments.micro_batches)
    who = [c for c in crossing.contestants(shape)
           if not arguments.only or c.name in arguments.only]
    state = up(arguments)
    (arguments.output / "logs").mkdir(parents=True)
    about, runs = describe(arguments), []
    print(title_of(about), flush=True)
    try:
        for number, contestant in measure.turns(who, arguments.rounds):
            runs.append(one_run(arguments, state, contestant, number))
            say(runs[-1])
            write(arguments, about, runs, who)
    except KeyboardInterrupt:
        print("interrupted; what is there is reported", flush=True)
    if not runs:
        return 130
    table, notes = write(arguments, about, runs, who)
    print("", report.plain(table, crossing.HEADER), "", *notes, "", sep="\n")
    print(f"written to {arguments.output}")
    failed = any("error" in run for run in runs)
    is_slow = arguments.check and bool(crossing.slow(runs))
    return int(failed or is_slow or bool(crossing.violations(runs, who)))


if __name__ == "__main__":
    sys.exit(main())
