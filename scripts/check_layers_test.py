#!/usr/bin/env python3
"""Tests check_layers.py on small trees with one violation each."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("check_layers.py")
GROUND = {
    "src/base/log.h": "// File: log.h\n",
    "src/comm/world.h": "// File: world.h\n",
    "src/memory/pool.h": "// File: pool.h\n",
    "src/testing/ranks.h": "// File: ranks.h\n",
    "include/nfold/engine.h": "// File: nfold/engine.h\n",
    "include/nfold/errors.h": "// File: nfold/errors.h\n",
}


def check(files: dict[str, str]) -> str:
    """What the script prints about a tree; empty when it finds nothing."""
    with tempfile.TemporaryDirectory() as root:
        for name, text in (GROUND | files).items():
            path = pathlib.Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        found = subprocess.run([sys.executable, str(SCRIPT), root],
                               capture_output=True, text=True, check=False)
        return found.stdout if found.returncode else ""


class CheckLayers(unittest.TestCase):
    def test_accepts_includes_that_point_down(self):
        self.assertEqual(check({
            "src/comm/world.cc": '#include "base/log.h"\n'
                                 '#include "nfold/errors.h"\n',
            "src/comm/world_test.cc": '#include "testing/ranks.h"\n',
            "src/testing/ranks.cc": '#include "comm/world.h"\n',
        }), "")

    def test_refuses_up_and_sideways(self):
        self.assertIn("src/base/log.cc:1:", check(
            {"src/base/log.cc": '#include "comm/world.h"\n'}))
        self.assertIn("points up", check(
            {"src/comm/a.cc": '#include "nfold/engine.h"\n'}))
        self.assertIn("points sideways", check(
            {"src/memory/pool.cc": '#include "comm/world.h"\n'}))

    def test_train_sees_public_headers_only(self):
        self.assertEqual(check(
            {"src/train/main.cc": '#include "nfold/engine.h"\n'}), "")
        self.assertIn("train may include only", check(
            {"src/train/main.cc": '#include "base/log.h"\n'}))

    def test_train_sees_what_its_bench_measures(self):
        self.assertEqual(check({
            "src/bench/rounds.h": "// File: rounds.h\n",
            "src/train/main.cc": '#include "bench/rounds.h"\n'}), "")
        self.assertIn("points up", check({
            "src/bench/rounds.h": "// File: rounds.h\n",
            "src/comm/a.cc": '#include "bench/rounds.h"\n'}))

    def test_only_tests_use_testing(self):
        self.assertIn("for tests only", check(
            {"src/comm/a.cc": '#include "testing/ranks.h"\n'}))

    def test_public_headers_include_public_headers_only(self):
        self.assertIn("a public header includes", check(
            {"include/nfold/engine.h":
             '// File: nfold/engine.h\n#include "base/log.h"\n'}))

    def test_refuses_folders_and_headers_without_layer(self):
        self.assertIn("has no layer", check(
            {"src/new/a.cc": '#include "base/log.h"\n'}))
        self.assertIn("has no layer", check({
            "include/nfold/new.h": "// File: nfold/new.h\n",
            "src/comm/a.cc": '#include "nfold/new.h"\n'}))

    def test_refuses_relative_includes(self):
        self.assertIn("is not a file below src", check(
            {"src/comm/a.cc": '#include "world.h"\n'}))

    def test_refuses_what_is_too_large(self):
        self.assertIn("601 lines", check({"src/base/a.cc": "\n" * 601}))
        self.assertIn("81 columns", check({"src/base/a.cc": "x" * 81}))
        self.assertEqual(check(
            {"src/base/a.cc": "// https://" + "x" * 81}), "")

    def test_refuses_names_and_headers_that_say_nothing(self):
        self.assertIn("collects", check({"src/base/string_utils.cc": ""}))
        self.assertIn('expected "// File: a.h"', check(
            {"src/base/a.h": "#pragma once\n"}))

    def test_refuses_other_characters_outside_of_tests(self):
        self.assertIn("outside of ASCII", check(
            {"src/base/a.cc": "// \u00e9\n"}))
        self.assertEqual(check({"src/base/a_test.cc": "// \u00e9\n"}), "")
        self.assertIn("a dash", check({"src/base/a_test.cc": "// \u2014\n"}))


if __name__ == "__main__":
    unittest.main()
