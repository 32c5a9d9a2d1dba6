"""Tests of the bench itself: no torch, no peer, processes of a second."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
import unittest

import contestants
import measure
import report

# Writes what a trainer writes, then does what the test asks for.
TRAINER = """
import json, pathlib, subprocess, sys
run_dir, steps, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(run_dir / "metrics.jsonl", "w") as metrics:
    for i in range(steps):
        print(json.dumps({"step": i, "step_ms": 100.0 + i,
                          "loss": None if end == "nan" else 9.0 - i,
                          "memory": {"peak_rss_bytes": (i + 1) << 20}}),
              file=metrics, flush=True)
if end == "hang":
    child = subprocess.Popen(["sleep", "600"])
    (run_dir / "child").write_text(str(child.pid))
    child.wait()
if end == "raise":
    print("[rank1]: ValueError: a bad value")
    print("torch.distributed.elastic ChildFailedError: everything")
    sys.exit(1)
"""


@dataclasses.dataclass(frozen=True)
class FakeContestant:
    end: str
    num_steps: int = 5
    is_nfold: bool = False

    def command(self, setting):
        return [sys.executable, "-c", TRAINER, str(setting.run_dir),
                str(self.num_steps), self.end]


def is_alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class MeasureTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        config = self.folder / "config.json"
        config.write_text(json.dumps({
            "data": {"sequence_length": 256},
            "engine": {"train_micro_batch_size_per_gpu": 4,
                       "optimizer": {"type": "AdamW"}}}))
        self.setting = contestants.Setting(
            config=config, run_dir=self.folder / "run", num_steps=5,
            num_ranks=2, nfold=pathlib.Path("nfold"))

    def run_fake(self, contestant, timeout_seconds=60):
        return measure.run(contestant, self.setting, num_warmup=2,
                           num_threads=1, timeout_seconds=timeout_seconds)

    def test_result_leaves_the_warm_up_out(self):
        result = self.run_fake(FakeContestant("well"))
        self.assertEqual(result.step_ms, [102.0, 103.0, 104.0])
        self.assertAlmostEqual(result.tokens_per_second, 4 * 256 * 2 / 0.103)
        self.assertEqual(result.peak_rss_bytes, 5 << 20)
        self.assertEqual(result.loss, 5.0)

    def test_a_failure_tells_the_error_of_the_rank(self):
        with self.assertRaisesRegex(measure.RunFailed,
                                    "exit code 1: .*ValueError: a bad value"):
            self.run_fake(FakeContestant("raise"))

    def test_a_loss_that_is_not_finite_is_a_failure(self):
        with self.assertRaisesRegex(measure.RunFailed, "last loss is None"):
            self.run_fake(FakeContestant("nan"))

    def test_missing_steps_are_a_failure(self):
        with self.assertRaisesRegex(measure.RunFailed, "expected 5 .*found 3"):
            self.run_fake(FakeContestant("well", num_steps=3))

    def test_a_hang_ends_with_all_processes(self):
        with self.assertRaisesRegex(measure.RunFailed, "no end after"):
            self.run_fake(FakeContestant("hang"), timeout_seconds=2)
        child = int((self.setting.run_dir / "child").read_text())
        end = time.monotonic() + 10
        while is_alive(child) and time.monotonic() < end:
            os.sched_yield()
        self.assertFalse(is_alive(child))

    def test_a_missing_program_is_a_failure(self):
        setting = dataclasses.replace(self.setting,
                                      nfold=self.folder / "nowhere")
        with self.assertRaisesRegex(measure.RunFailed, "nowhere"):
            measure.run(contestants.Contestant("nfold-2", 2), setting,
                        num_warmup=2, num_threads=1, timeout_seconds=60)


def run_of(name, number, tokens_per_second, peak_rss_bytes):
    return {"contestant": name, "round": number,
            "tokens_per_second": tokens_per_second,
            "peak_rss_bytes": peak_rss_bytes}


class ReportTest(unittest.TestCase):
    def setUp(self):
        self.peer = contestants.Contestant("ddp", 2, ("--peer", "ddp"))

    def behind(self, *runs):
        return report.behind(runs, [self.peer])

    def test_ratios_pair_the_runs_of_a_round(self):
        # Everyone is three times as fast in round 2: still 2 x in each.
        lines = self.behind(
            run_of("nfold-2", 1, 20, 5), run_of("ddp", 1, 10, 9),
            run_of("nfold-2", 2, 60, 5), run_of("ddp", 2, 30, 9))
        self.assertEqual(lines, [])

    def test_a_slower_and_larger_nfold_is_named(self):
        lines = self.behind(run_of("nfold-2", 1, 10, 9),
                            run_of("ddp", 1, 20, 5))
        self.assertEqual(len(lines), 2)
        self.assertIn("behind ddp in speed: 0.50", lines[0])
        self.assertIn("behind ddp in peak memory: 1.80", lines[1])

    def test_failed_rounds_do_not_count(self):
        failed = {"contestant": "nfold-2", "round": 1, "error": "broken"}
        self.assertEqual(self.behind(failed, run_of("ddp", 1, 20, 5)), [])


if __name__ == "__main__":
    unittest.main()
