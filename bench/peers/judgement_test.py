"""Tests of what is made of the runs: curves, requirements, tables, bars."""

import unittest

import contestants
import curves
import picture
import report
import requirements
import tokens
from requirements import Requirement

PEERS = {c.name: c for c in contestants.CONTESTANTS}
MIB = 1 << 20


def run_of(name, number=1, *, speed=10.0, memory=5 * MIB, losses=(9.0, 8.0),
           first_step=2.0, model="medium", ranks=2, tokens_per_step=512):
    return {"contestant": name, "round": number, "model": model,
            "ranks": ranks, "threads": 1, "tokens_per_second": speed,
            "peak_pss_bytes": memory, "peak_rss_bytes": memory,
            "first_step_seconds": first_step, "losses": list(losses),
            "loss": losses[-1], "tokens_per_step": tokens_per_step,
            "step_ms": [100.0, 102.0], "median_step_ms": 101.0,
            "wall_ms": [101.0, 103.0], "others_cpu": 0.0,
            "wire_bytes_per_step": 0, "optimizer": "AdamW", "settings": {},
            "num_parameters": 1000}


def failed(name, number=1, model="medium"):
    return {"contestant": name, "round": number, "model": model, "ranks": 2,
            "threads": 1, "error": "broken"}


class TokensTest(unittest.TestCase):
    # token_loader_test.cc expects the same numbers of nfold.
    def test_rows_are_those_of_nfold(self):
        made = tokens.Tokens(seed=42, vocab_size=50304, length=4,
                             micro_batch=1, num_batches=0)
        self.assertEqual(made.batch(0, 0, 2)[0][:4],
                         [37999, 22446, 12247, 36280])
        self.assertEqual(made.batch(0, 1, 2)[0][:4],
                         [9922, 11224, 11495, 37936])
        self.assertEqual(made.batch(3, 1, 2)[0][1:],
                         [15818, 36495, 7900, 29890])

    def test_batches_repeat(self):
        made = tokens.Tokens(seed=1, vocab_size=100, length=4, micro_batch=2,
                             num_batches=2)
        self.assertEqual(made.batch(5, 0, 2), made.batch(1, 0, 2))
        self.assertNotEqual(made.batch(0, 0, 2), made.batch(1, 0, 2))
        self.assertNotEqual(made.batch(0, 0, 2), made.batch(0, 1, 2))


class CurvesTest(unittest.TestCase):
    def departed(self, *runs, tolerance=1e-3):
        return [(d.contestant, d.step) for d in
                curves.departures(runs, tolerance)]

    def test_who_leaves_ddp_is_named_with_the_first_step(self):
        self.assertEqual(self.departed(
            run_of("ddp", losses=(9, 8, 7)),
            run_of("nfold-3", losses=(9, 8.001, 7.001)),
            run_of("deepspeed-3", losses=(9, 8.1, 7.5))), [("deepspeed-3", 2)])

    def test_without_ddp_most_decide(self):
        self.assertEqual(self.departed(
            run_of("nfold-3", losses=(9, 8.5)), run_of("fsdp2"),
            run_of("zero1")), [("nfold-3", 2)])

    def test_only_runs_with_as_many_tokens_compare(self):
        self.assertEqual(self.departed(
            run_of("ddp", losses=(9, 8)),
            run_of("limit", losses=(9, 7), tokens_per_step=256),
            # Of one rank: what single processes compare with.
            run_of("ddp", losses=(9, 7), tokens_per_step=256, ranks=1),
            run_of("single", losses=(9, 6), tokens_per_step=256)),
            [("single", 2)])

    def test_the_line_says_what_was_expected(self):
        departure, = curves.departures(
            [run_of("ddp"), run_of("zero1", losses=(9.0, 7.0))], 1e-3)
        self.assertIn("zero1 computes something else", str(departure))
        self.assertIn("step 2 is 7, that of the reference 8", str(departure))

    def test_stages_of_nfold_have_the_same_bits(self):
        one = run_of("nfold-1", losses=(9.0, 8.0))
        other = run_of("nfold-3", losses=(9.0, 8.0000001))
        self.assertEqual(curves.unequal_stages([one, run_of("nfold-2")]), [])
        line, = curves.unequal_stages([one, other])
        self.assertIn("nfold-3", line)
        self.assertEqual(curves.unequal_stages(
            [one, run_of("limit", losses=(9.0, 7.0))]), [])

    def test_failed_runs_say_nothing(self):
        self.assertEqual(self.departed(run_of("ddp"), failed("zero1")), [])

    def test_precision_of_a_configuration(self):
        engine = {"engine": {"bf16": {"enabled": True}}}
        self.assertEqual(curves.precision_of(engine), "bf16")
        self.assertEqual(curves.precision_of(
            {"engine": {}, "train": {"dtype": "fp16"}}), "fp16")
        self.assertEqual(curves.precision_of({"engine": {}}), "fp32")


class RequirementsTest(unittest.TestCase):
    TWICE = Requirement("medium", "nfold-3", requirements.SPEED, ">=", 2.0,
                        ("fsdp2", "deepspeed-3"))
    HALF = Requirement("medium", "nfold-3", requirements.MEMORY, "<=", 0.5,
                       ("fsdp2", "deepspeed-3"))

    def judge(self, requirement, *runs):
        verdict, = requirements.judge(runs, [requirement])
        return verdict

    def test_the_best_peer_decides_on_speed(self):
        verdict = self.judge(self.TWICE, run_of("nfold-3", speed=20),
                             run_of("fsdp2", speed=8),
                             run_of("deepspeed-3", speed=12))
        self.assertFalse(verdict.is_met)
        self.assertEqual(verdict.closest, "deepspeed-3")
        self.assertIn("NOT MET", str(verdict))

    def test_the_best_peer_decides_on_memory(self):
        verdict = self.judge(self.HALF, run_of("nfold-3", memory=5),
                             run_of("fsdp2", memory=10),
                             run_of("deepspeed-3", memory=99))
        self.assertTrue(verdict.is_met)
        self.assertEqual((verdict.closest, verdict.ratio[0]), ("fsdp2", 0.5))

    def test_rounds_are_compared_each_by_itself(self):
        # Everyone is three times as fast in round 2: still 2 x in each.
        verdict = self.judge(
            self.TWICE, run_of("nfold-3", 1, speed=20),
            run_of("fsdp2", 1, speed=10), run_of("deepspeed-3", 1, speed=5),
            run_of("nfold-3", 2, speed=60), run_of("fsdp2", 2, speed=30),
            run_of("deepspeed-3", 2, speed=15))
        self.assertTrue(verdict.is_met)
        self.assertEqual(verdict.ratio, (2.0, 2.0, 2.0))

    def test_what_was_not_measured_is_not_met(self):
        verdict = self.judge(self.TWICE, run_of("nfold-3", speed=90),
                             run_of("fsdp2"), failed("deepspeed-3"))
        self.assertFalse(verdict.is_met)
        self.assertIn("no run of deepspeed-3", str(verdict))
        self.assertFalse(self.judge(self.TWICE, run_of("fsdp2"),
                                    run_of("deepspeed-3")).is_met)

    def test_a_bound_of_its_own(self):
        within = Requirement("small", "nfold-3", requirements.FIRST_STEP,
                             "<=", 2.5)
        self.assertTrue(self.judge(
            within, run_of("nfold-3", first_step=2.4, model="small")).is_met)
        self.assertFalse(self.judge(
            within, run_of("nfold-3", first_step=2.6, model="small")).is_met)

    def test_ahead_is_more_than_equal(self):
        ahead = Requirement("medium", "nfold-3", requirements.SPEED, ">", 1.0,
                            ("ddp",))
        self.assertFalse(self.judge(ahead, run_of("nfold-3"),
                                    run_of("ddp")).is_met)

    def test_only_two_ranks_of_one_thread_are_judged(self):
        self.assertEqual(requirements.judge(
            [run_of("nfold-3", ranks=4), run_of("fsdp2", ranks=4)]), [])

    def test_the_table_names_contestants_and_what_is_measured(self):
        run = run_of("nfold-3")
        for requirement in requirements.REQUIREMENTS:
            for name in (requirement.who, *requirement.against):
                self.assertIn(name, PEERS)
            self.assertIn(requirement.measure, run)
            self.assertIn(requirement.relation, requirements.RELATIONS)
            is_more_better = requirement.measure == requirements.SPEED
            self.assertEqual(requirement.relation[0] == ">", is_more_better)


class ReportTest(unittest.TestCase):
    def test_a_peer_stands_beside_nfold_at_its_stage(self):
        table = report.rows(
            [run_of("nfold-0", speed=20, memory=4 * MIB),
             run_of("ddp", speed=10, memory=8 * MIB)],
            [PEERS["nfold-0"], PEERS["ddp"]])
        self.assertEqual(table[0][-2:], ("", ""))
        self.assertEqual(table[1][-2:], ("2.00", "0.50"))
        self.assertEqual(table[1][5], "8")

    def test_failures_and_departures_are_in_the_table(self):
        table = report.rows([run_of("ddp"), failed("zero1")],
                            [PEERS["ddp"], PEERS["zero1"]], {"ddp"})
        self.assertIn("computes something else", " ".join(table[0]))
        self.assertIn("failed", table[1])
        self.assertEqual({len(row) for row in table}, {len(report.HEADER)})

    def test_settings_are_those_that_were_used(self):
        run = run_of("ddp") | {"settings": {"gradient_as_bucket_view": True}}
        line, = report.settings([run], [PEERS["ddp"], PEERS["zero1"]])
        self.assertIn('{"gradient_as_bucket_view": true}', line)

    def test_a_disturbed_run_is_named(self):
        run = run_of("ddp") | {"others_cpu": 0.5}
        self.assertIn("Disturbed: medium GPT, 2 ranks x 1 thread, ddp",
                      " ".join(report.notes([run])))


class PictureTest(unittest.TestCase):
    WHO = [PEERS[name] for name in ("limit", "nfold-3", "ddp", "fsdp2")]

    def test_bars_are_by_the_best_peer_of_the_round(self):
        runs = [run_of("nfold-3", 1, speed=20), run_of("ddp", 1, speed=10),
                run_of("fsdp2", 1, speed=5), run_of("nfold-3", 2, speed=30),
                run_of("ddp", 2, speed=20), run_of("fsdp2", 2, speed=10)]
        self.assertEqual(picture.best_peer(runs, self.WHO), "ddp")
        self.assertEqual(
            [(c.name, middle, values) for c, middle, values in
             picture.bars(runs, self.WHO)],
            [("nfold-3", 1.75, [2.0, 1.5]), ("ddp", 1.0, [1.0, 1.0]),
             ("fsdp2", 0.5, [0.5, 0.5])])

    def test_without_peers_bars_are_tokens(self):
        found, = picture.bars([run_of("nfold-3", speed=20)], self.WHO)
        self.assertEqual(found[1:], (20.0, [20.0]))


if __name__ == "__main__":
    unittest.main()
