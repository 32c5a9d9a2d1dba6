"""Tests of how a run is measured: no torch, no peer, processes of a second."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import contestants
import measure
import processes

# Writes what a trainer writes, then does what the test asks for.
TRAINER = """
import json, pathlib, subprocess, sys, time
run_dir, steps, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
run_dir.mkdir(parents=True, exist_ok=True)
with open(run_dir / "metrics.jsonl", "w") as metrics:
    for i in range(steps):
        print(json.dumps({"step": i, "step_ms": 100.0 + i,
                          "loss": None if end == "nan" and i == 1 else 9.0 - i,
                          "memory": {"peak_rss_bytes": (i + 1) << 20}}),
              file=metrics, flush=True)
if end == "hang":
    child = subprocess.Popen(["sleep", "600"])
    (run_dir / "child").write_text(str(child.pid))
    child.wait()
if end == "raise":
    print("[rank1]: ValueError: a bad value")
    print("torch.distributed.elastic ChildFailedError: everything")
    print("==========")
    sys.exit(1)
"""


@dataclasses.dataclass(frozen=True)
class FakeContestant:
    end: str
    num_steps: int = 5
    num_copies: int = 1
    is_peer: bool = True

    def starts(self, setting):
        folders = ([setting.run_dir] if self.num_copies == 1 else
                   [setting.run_dir / str(i) for i in range(self.num_copies)])
        return [contestants.Start(
            [sys.executable, "-c", TRAINER, str(folder), str(self.num_steps),
             self.end], folder, setting.num_ranks // self.num_copies,
            num_threads=1, is_launched=False) for folder in folders]


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
            num_ranks=2, num_threads=1, nfold=pathlib.Path("nfold"))

    def run_fake(self, contestant, timeout_seconds=60, num_memory_steps=0):
        return measure.run(contestant, self.setting, measure.Options(
            num_warmup=2, timeout_seconds=timeout_seconds,
            num_memory_steps=num_memory_steps, pss_seconds=0.01))

    def test_result_leaves_the_warm_up_out(self):
        result = self.run_fake(FakeContestant("well"))
        self.assertEqual(result.step_ms, [102.0, 103.0, 104.0])
        self.assertAlmostEqual(result.tokens_per_second, 4 * 256 * 2 / 0.103)
        self.assertEqual(result.peak_rss_bytes, 5 << 20)
        self.assertEqual(result.losses, [9.0, 8.0, 7.0, 6.0, 5.0])
        self.assertGreater(result.first_step_seconds, 0)

    def test_result_leaves_the_steps_for_memory_out(self):
        result = self.run_fake(FakeContestant("well"), num_memory_steps=2)
        self.assertEqual(result.step_ms, [102.0])
        self.assertEqual(len(result.losses), 5)

    def test_copies_add_their_tokens(self):
        result = self.run_fake(FakeContestant("well", num_copies=2))
        self.assertEqual(result.step_ms, [102.0, 103.0, 104.0])
        self.assertAlmostEqual(result.tokens_per_second,
                               2 * 4 * 256 / 0.103)
        # Each is a training of its own.
        self.assertEqual(result.tokens_per_step, 4 * 256)

    def test_a_failure_tells_the_error_of_the_rank(self):
        with self.assertRaisesRegex(measure.RunFailed,
                                    "exit code 1: .*ValueError: a bad value"):
            self.run_fake(FakeContestant("raise"))

    def test_a_loss_that_is_not_finite_is_a_failure(self):
        with self.assertRaisesRegex(measure.RunFailed,
                                    "loss of step 1 is None"):
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
            measure.run(contestants.Nfold("nfold-2", 2), setting,
                        measure.Options(num_warmup=2, timeout_seconds=60))


# Holds so many MiB until its input closes.
HOLDER = """
import sys
held = bytearray(int(sys.argv[1]) << 20)
print("ready", flush=True)
sys.stdin.read()
"""
LAUNCHER = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1], mib],
                          env=os.environ | {"RANK": str(i)},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
         for i, mib in enumerate(sys.argv[2:])]
for rank in ranks: rank.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
for rank in ranks: rank.communicate()
"""


class ProcessesTest(unittest.TestCase):
    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        process.stdout.readline()
        return process

    def test_memory_of_one_process(self):
        sampler = processes.PssSampler(60)
        sampler.watch(self.start(HOLDER, "64").pid, "0", is_launched=False)
        sampler.look()
        self.assertEqual(list(sampler.peaks), ["0"])
        self.assertGreater(sampler.peaks["0"], 64 << 20)
        self.assertLess(sampler.peaks["0"], 96 << 20)

    def test_memory_of_ranks_without_their_launcher(self):
        sampler = processes.PssSampler(60)
        launcher = self.start(LAUNCHER, HOLDER, "64", "16")
        sampler.watch(launcher.pid, "0", is_launched=True)
        sampler.look()
        self.assertEqual(sorted(sampler.peaks), ["0.0", "0.1"])
        difference = sampler.peaks["0.0"] - sampler.peaks["0.1"]
        self.assertLess(abs(difference - (48 << 20)), 4 << 20)

    def test_peaks_stay_when_the_process_has_ended(self):
        sampler = processes.PssSampler(60)
        process = self.start(HOLDER, "32")
        sampler.watch(process.pid, "0", is_launched=False)
        sampler.look()
        process.communicate()
        sampler.look()
        self.assertGreater(sampler.peaks["0"], 32 << 20)


class ContestantsTest(unittest.TestCase):
    def setUp(self):
        self.setting = contestants.Setting(
            config=pathlib.Path("c.json"), run_dir=pathlib.Path("run"),
            num_steps=5, num_ranks=4, num_threads=1,
            nfold=pathlib.Path("nfold"), weights=pathlib.Path("w.safetensors"))

    def starts(self, name):
        return next(c for c in contestants.CONTESTANTS
                    if c.name == name).starts(self.setting)

    def test_everybody_starts_from_the_weights(self):
        for contestant in contestants.CONTESTANTS:
            for start in contestant.starts(self.setting):
                self.assertIn("w.safetensors", " ".join(start.command))

    def test_limit_is_a_process_for_each_rank(self):
        starts = self.starts("limit")
        self.assertEqual([s.num_threads for s in starts], [1] * 4)
        self.assertEqual(len({s.run_dir for s in starts}), 4)
        self.assertFalse(any(s.is_launched for s in starts))

    def test_limit_of_torch_is_a_world_of_one_for_each_rank(self):
        starts = self.starts("limit-torch")
        self.assertEqual([s.num_ranks for s in starts], [1] * 4)
        self.assertEqual(len({s.run_dir for s in starts}), 4)
        for start in starts:
            self.assertIn("--peer alone", " ".join(start.command))

    def test_single_has_all_threads(self):
        start, = self.starts("single")
        self.assertEqual((start.num_ranks, start.num_threads), (1, 4))

    def test_deepspeed_takes_part_with_two_settings_of_its_stages(self):
        for stage in (1, 2, 3):
            names = {c.name for c in contestants.CONTESTANTS
                     if c.is_peer and c.stage == stage and
                     "deepspeed" in c.arguments}
            self.assertEqual(names, {f"deepspeed-{stage}",
                                     f"deepspeed-{stage}-default"})


if __name__ == "__main__":
    unittest.main()
