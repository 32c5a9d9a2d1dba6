"""Measures nfold beside DDP, ZeroRedundancyOptimizer, FSDP2 and DeepSpeed.

    bench/peers/run.sh                       all: two models, 1, 2 and 4 ranks
    bench/peers/run.sh --ranks 2 --check     what the requirements are about
    bench/peers/run.sh --quick               small GPT, 2 ranks, 1 round
    bench/peers/run.sh --models medium --only nfold-2 fsdp2 limit

All run on this machine, one after the other, several rounds, each round
starting with another one: a phase in which the machine is slow then hits
everyone. All start from the same weights and train on the same tokens, and
their losses are compared. Writes results.json (raw numbers), results.md and
results.svg into the output folder, after every run. Exit status 1: a run
failed; with --check also: a contestant computed something else, or nfold does
not reach what requirements.py asks for.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import shlex
import subprocess
import sys

import contestants
import curves
import machine
import measure
import picture
import report
import requirements

ROOT = contestants.ROOT
KNOWN = {c.name: c for c in
         (*contestants.CONTESTANTS, *contestants.ALTERNATIVES)}
MODELS = ("medium", "small")
# Of the steps after the timed ones, in which memory is looked at again.
NUM_MEMORY_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """What all contestants do at a time."""

    model: str
    ranks: int
    threads: int

    @property
    def name(self):
        return f"{self.model}-{self.ranks}"

    def about(self):
        return dataclasses.asdict(self)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="bench/peers/run.sh", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS,
                        help="examples/bench-MODEL.json (default: both)")
    parser.add_argument("--ranks", nargs="+", type=int, metavar="N",
                        help="default: 1 2 4")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--steps", type=int, help="timed steps (default: 8)")
    parser.add_argument("--warmup", type=int, default=3,
                        help="steps before them (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=KNOWN,
                        help="of: " + ", ".join(KNOWN))
    parser.add_argument("--quick", action="store_true",
                        help="small model, 2 ranks, 1 round, 3 timed steps")
    parser.add_argument("--memory-interval", type=float, default=0.2,
                        metavar="SECONDS", help="between two looks at the "
                        "ranks' memory (default: 0.2)")
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
                        help="fail unless nfold reaches all requirements and "
                        "everybody computes the same")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.models = arguments.models or (["small"] if quick
                                            else list(MODELS))
    arguments.ranks = arguments.ranks or ([2] if quick else [1, 2, 4])
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.steps = arguments.steps or (3 if quick else 8)
    arguments.output = (arguments.output or ROOT / "runs" /
                        f"bench-{datetime.datetime.now():%Y%m%d-%H%M%S}"
                        ).resolve()
    if min(arguments.rounds, arguments.steps, arguments.warmup,
           arguments.threads, *arguments.ranks) < 1:
        parser.error("--rounds, --steps, --warmup, --threads and --ranks must "
                     "be at least 1")
    if arguments.memory_interval <= 0:
        parser.error("--memory-interval must be positive")
    return arguments


def config_of(model):
    return ROOT / f"examples/bench-{model}.json"


def describe(arguments):
    """Everything that one needs to measure this again."""
    return machine.describe() | {
        "command": shlex.join(["bench/peers/run.sh", *sys.argv[1:]]),
        "models": {model: json.loads(config_of(model).read_text())
                   for model in arguments.models},
        "precision": curves.precision_of(
            json.loads(config_of(arguments.models[0]).read_text())),
        "deepspeed": machine.version("deepspeed"),
        # What decides more than the command line says.
        "environment": {name: value for name, value in os.environ.items()
                        if name.startswith(("NFOLD_", "OMP_", "KMP_", "GLOO_",
                                            "MALLOC_", "LD_PRELOAD"))},
    }


def title_of(about):
    return (f"one machine, {about['precision']}, AdamW, torch "
            f"{about['torch']}, deepspeed {about['deepspeed']}, nfold "
            f"{about['nfold_revision']}")


def save_weights(arguments, model):
    """The file that everybody starts from: the weights that nfold draws.

    With a learning rate of 0 a step leaves them as they are, and then nfold
    saves them.
    """
    run_dir = arguments.output / "logs" / f"weights-{model}"
    done = subprocess.run(
        [arguments.nfold, "train", config_of(model), "--run-dir", run_dir,
         "--set", "train.steps=1", "--set", "train.save=true", "--set",
         "engine.optimizer.params.lr=0"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"run.py: cannot make weights of {model}: "
                 f"{done.stderr.strip()}")
    return run_dir / "model.safetensors"


class Session:
    """All runs of one invocation, and the files that tell of them."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.who = ([KNOWN[name] for name in dict.fromkeys(arguments.only)]
                    if arguments.only else list(contestants.CONTESTANTS))
        self.cases = [Case(model, ranks, arguments.threads)
                      for model, ranks in itertools.product(
                          dict.fromkeys(arguments.models),
                          dict.fromkeys(arguments.ranks))]
        self.about = describe(arguments)
        self.tolerance = curves.TOLERANCES[self.about["precision"]]
        self.runs = []

    def of_case(self, case):
        about = case.about().items()
        return [run for run in self.runs if about <= run.items()]

    def one_run(self, case, contestant, number, weights):
        """As a dictionary: the fields of measure.Result, or "error"."""
        arguments = self.arguments
        setting = contestants.Setting(
            config=config_of(case.model),
            run_dir=(arguments.output / "logs" / case.name /
                     f"{number}-{contestant.name}"),
            num_steps=arguments.warmup + arguments.steps + NUM_MEMORY_STEPS,
            num_ranks=case.ranks, num_threads=case.threads,
            nfold=arguments.nfold, weights=weights,
            nfold_assignments=tuple(arguments.nfold_set))
        options = measure.Options(
            num_warmup=arguments.warmup, num_memory_steps=NUM_MEMORY_STEPS,
            pss_seconds=arguments.memory_interval, prefix=arguments.prefix,
            timeout_seconds=arguments.time_limit)
        return case.about() | measure.record(contestant, setting, number,
                                             options)

    def run(self):
        weights = {model: save_weights(self.arguments, model)
                   for model in dict.fromkeys(self.arguments.models)}
        for case in self.cases:
            logs = self.arguments.output / "logs" / case.name
            logs.mkdir(parents=True)
            for number, contestant in measure.turns(self.who,
                                                    self.arguments.rounds):
                self.runs.append(self.one_run(case, contestant, number,
                                              weights[case.model]))
                say(self.runs[-1])
                self.write()

    def tables(self):
        """(title, table) of each case that has run."""
        departed = curves.departures(self.runs, self.tolerance)
        for case in self.cases:
            runs = self.of_case(case)
            if runs:
                names = {d.contestant for d in departed
                         if d.ranks == case.ranks and d.model == case.model}
                yield (report.case_text(runs[0]),
                       report.rows(runs, self.who, names))

    def wrong(self):
        """What is wrong with the losses."""
        return [*map(str, curves.departures(self.runs, self.tolerance)),
                *curves.unequal_stages(self.runs)]

    def notes(self):
        return [*self.wrong(), *curves.notes(self.runs, self.tolerance),
                *report.notes(self.runs)]

    def write(self):
        output, verdicts = self.arguments.output, requirements.judge(self.runs)
        (output / "results.json").write_text(json.dumps(self.about | {
            "requirements": [{"text": str(v.requirement), "ratio": v.ratio,
                              "against": v.closest, "is_met": v.is_met}
                             for v in verdicts],
            "wrong": self.wrong(), "runs": self.runs}, indent=1) + "\n")
        lines = [f"# {title_of(self.about)}", "",
                 machine.line_of(self.about), ""]
        for title, table in self.tables():
            lines += [f"## {title}", "", report.markdown(table), ""]
        for title, items in (
                ("Notes", self.notes()),
                ("Requirements", map(str, verdicts)),
                ("Settings", report.settings(self.runs, self.who))):
            lines += [f"## {title}", "", *[f"- {item}" for item in items], ""]
        (output / "results.md").write_text("\n".join(lines))

    def draw(self):
        cases = [(report.case_text(runs[0]), runs) for case in self.cases
                 if (runs := self.of_case(case)) and
                 any("error" not in run for run in runs)]
        if cases and machine.version("matplotlib"):
            picture.write(cases, self.who, title_of(self.about),
                          self.arguments.output / "results.svg")

    def tell(self):
        for title, table in self.tables():
            print("", title, report.plain(table), sep="\n")
        print("", *self.notes(), "", "Requirements:",
              *requirements.judge(self.runs), "", "Settings:",
              *report.settings(self.runs, self.who), "", sep="\n")
        print(f"written to {self.arguments.output}")

    def exit_status(self):
        if any("error" in run for run in self.runs):
            return 1
        if not self.arguments.check:
            return 0
        verdicts = requirements.judge(self.runs)
        if not verdicts:
            print("--check: no requirement was judged; they are about "
                  f"{requirements.NUM_RANKS} ranks with "
                  f"{requirements.NUM_THREADS} thread")
        return int(not verdicts or bool(self.wrong()) or
                   not all(verdict.is_met for verdict in verdicts))


def say(run):
    if "error" in run:
        text = f"failed: {run['error']}"
    else:
        text = (f"{run['median_step_ms']:.0f} ms a step, "
                f"{run['tokens_per_second']:.0f} tokens/s, "
                f"{run['peak_pss_bytes'] / measure.MIB:.0f} MiB")
    print(f"{run['model']}, {run['ranks']} ranks, round {run['round']}  "
          f"{run['contestant']:20} {text}", flush=True)


def main():
    arguments = parse_arguments()
    (arguments.output / "logs").mkdir(parents=True)
    session = Session(arguments)
    print(title_of(session.about), flush=True)
    try:
        session.run()
    except KeyboardInterrupt:
        print("interrupted; what is there is reported", flush=True)
    if not session.runs:
        return 130
    session.write()
    session.draw()
    session.tell()
    return session.exit_status()


if __name__ == "__main__":
    sys.exit(main())
