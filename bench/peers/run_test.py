"""A whole invocation with a program that only writes what nfold would."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

import run

# Its losses fall in the same way everywhere, but for the stage in BROKEN.
NFOLD = """#!{python}
import json, os, pathlib, sys, time
sets = dict(a.split("=", 1) for a in sys.argv if "=" in a)
run_dir = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
run_dir.mkdir(parents=True)
(run_dir / "model.safetensors").write_text("weights")
is_broken = sets.get("engine.zero_optimization.stage") == {broken!r}
with open(run_dir / "metrics.jsonl", "w") as metrics:
    for step in range(int(sets["train.steps"])):
        loss = 9.0 - step * (0.5 if is_broken else 1.0)
        print(json.dumps({{"step": step + 1, "step_ms": 10.0, "loss": loss,
                           "memory": {{"peak_rss_bytes": 1 << 20,
                                       "params_bytes": 4000}}}}),
              file=metrics, flush=True)
"""


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def invoke(self, *arguments, broken="none"):
        nfold = self.folder / "nfold"
        nfold.write_text(NFOLD.format(python=sys.executable, broken=broken))
        nfold.chmod(0o755)
        self.output = self.folder / "output"
        words = ["run.py", "--nfold", str(nfold), "--output", str(self.output),
                 "--warmup", "1", "--steps", "2", "--rounds", "1", *arguments]
        text = io.StringIO()
        with mock.patch.object(sys, "argv", words), \
                contextlib.redirect_stdout(text):
            status = run.main()
        return status, text.getvalue()

    def test_every_model_and_number_of_ranks_has_its_table(self):
        status, text = self.invoke("--models", "medium", "small", "--ranks",
                                   "1", "2", "--only", "nfold-0", "nfold-3",
                                   "limit")
        self.assertEqual(status, 0, text)
        told = (self.output / "results.md").read_text()
        for case in ("medium GPT, 1 rank x", "medium GPT, 2 ranks x",
                     "small GPT, 1 rank x", "small GPT, 2 ranks x"):
            self.assertIn(f"## {case}", told)
            self.assertIn(case, text)
        self.assertIn("nfold-3: nfold train, zero_optimization.stage 3", told)
        results = json.loads((self.output / "results.json").read_text())
        self.assertEqual(len(results["runs"]), 4 * 3)
        self.assertEqual(results["wrong"], [])
        self.assertEqual(results["precision"], "fp32")
        self.assertIn("is_met", results["requirements"][0])

    def test_check_fails_for_what_was_not_measured(self):
        status, text = self.invoke("--models", "small", "--ranks", "2",
                                   "--only", "nfold-3", "--check")
        self.assertEqual(status, 1)
        self.assertIn("not measured", text)

    def test_check_fails_where_nothing_can_be_judged(self):
        status, text = self.invoke("--models", "small", "--ranks", "1",
                                   "--only", "nfold-3", "--check")
        self.assertEqual(status, 1)
        self.assertIn("no requirement was judged", text)

    def test_who_computes_something_else_is_told(self):
        status, text = self.invoke(
            "--models", "small", "--ranks", "2", "--only", "nfold-0",
            "nfold-1", "nfold-3", broken="3")
        self.assertEqual(status, 0)
        self.assertIn("nfold-3 computes something else: small, 2 ranks", text)
        self.assertIn("nfold-3, 2 ranks, round 1: other losses", text)
        self.assertIn("computes something else |",
                      (self.output / "results.md").read_text())

    def test_a_failed_run_fails_the_invocation(self):
        with mock.patch.object(run.measure, "record", return_value={
                "contestant": "nfold-3", "round": 1, "error": "broken"}):
            status, text = self.invoke("--models", "small", "--ranks", "2",
                                       "--only", "nfold-3")
        self.assertEqual(status, 1)
        self.assertIn("Failed: small GPT, 2 ranks x 1 thread, nfold-3", text)


if __name__ == "__main__":
    unittest.main()
