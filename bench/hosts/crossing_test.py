"""Tests of the arithmetic, on runs that were never run."""

import unittest

import crossing

P = 1_000_000
SHAPE = crossing.Shape(num_hosts=2, ranks_per_host=2)
STAGE3, FLAT, HPZ, MICS, QWZ, QGZ, ALL = crossing.contestants(SHAPE)
ONE_GATHER = 4 * P  # 4 ranks send a quarter of 4 P bytes to 1 far rank each
BASE = {"train": {"steps": 1, "seed": 42},
        "engine": {"train_micro_batch_size_per_gpu": 4,
                   "zero_optimization": {"stage": 2}}}


def run_of(contestant, parameter_bytes, *, number=1, tokens_per_second=100.0,
           loss=2.0, num_micro_batches=1):
    gradients = 8 * P if contestant.is_mics else 4 * P * num_micro_batches
    if contestant.shape.is_flat:
        gradients *= 2
    if contestant.has_coded_gradients:
        gradients = 17 / 32 * P * num_micro_batches
    # Of 3 bytes that rank 0 sends in a gather one crosses; of messages two do.
    sent = parameter_bytes * 3 / 4
    if contestant.shape.is_flat:
        sent /= 2
    return {"contestant": contestant.name, "round": number,
            "wire_bytes_per_step": 1.01 * (gradients + parameter_bytes),
            "num_parameters": P, "step_ms": [10.0, 12.0],
            "median_step_ms": 11.0, "wall_ms": [10.0, 12.0],
            "tokens_per_second": tokens_per_second, "peak_rss_bytes": 1 << 20,
            "others_cpu": 0.0, "loss": loss,
            "comm": {"all_gather": {"bytes": sent}}}


def good_runs():
    return [run_of(STAGE3, 2 * ONE_GATHER),
            run_of(HPZ, ONE_GATHER, tokens_per_second=150.0),
            run_of(MICS, 0, tokens_per_second=250.0)]


class FormulaTest(unittest.TestCase):
    def test_bytes_of_two_hosts_with_two_ranks(self):
        self.assertEqual(SHAPE.gather_bytes(P), ONE_GATHER)
        self.assertEqual(SHAPE.gradient_bytes(P, is_mics=False), 4 * P)
        self.assertEqual(FLAT.shape.gather_bytes(P), 2 * ONE_GATHER)
        self.assertEqual(FLAT.shape.gradient_bytes(P), 8 * P)
        # Pairs of ranks sum half of the model each, half of which each sums.
        self.assertEqual(SHAPE.gradient_bytes(P, is_mics=True), 8 * P)

    def test_bytes_of_other_shapes(self):
        shape = crossing.Shape(num_hosts=4, ranks_per_host=2,
                               num_micro_batches=3)
        self.assertEqual(shape.gather_bytes(P), 4 * P * 3)
        self.assertEqual(shape.gradient_bytes(P, is_mics=False), 3 * 12 * P)
        # Sums of 3 ranks are no branch of the tree.
        odd = crossing.Shape(num_hosts=2, ranks_per_host=3)
        self.assertEqual(odd.gather_bytes(P), 4 * P)
        self.assertEqual(odd.gradient_bytes(P), 4 * P * 3)
        # 8 ranks, groups of 4 replicas: 2 B 3/4 each, B = 2 P.
        self.assertEqual(shape.gradient_bytes(P, is_mics=True), 8 * 3 * P)
        # 6 ranks apart, an eighth each to the 3 of its column.
        self.assertEqual(shape.gradient_bytes(P, is_coded=True),
                         3 * 3 * P * 17 / 32)

    def test_bytes_of_coded_elements(self):
        self.assertEqual(QWZ.gather_bytes(P), ONE_GATHER * 65 / 256)
        self.assertEqual(QWZ.gradient_bytes(P), 4 * P)
        self.assertEqual(QGZ.gather_bytes(P), ONE_GATHER)
        self.assertEqual(QGZ.gradient_bytes(P), P * 17 / 32)
        self.assertEqual(ALL.gather_bytes(P), ONE_GATHER * 65 / 256)

    def test_what_rank_0_sends_to_far_ranks_counts_for_all(self):
        # A quarter of 4 P bytes to 3 peers.
        self.assertEqual(FLAT.shape.crossing_bytes(3 * P), 2 * ONE_GATHER)
        # To 1 across, and that one's and its own to 1 beside it.
        self.assertEqual(SHAPE.crossing_bytes(3 * P), ONE_GATHER)

    def test_shares_of_the_parameters(self):
        for contestant, bytes_held in [
                (STAGE3, P), (HPZ, 3 * P), (MICS, 2 * P),
                (ALL, P + 2 * P * 65 / 256)]:
            self.assertAlmostEqual(4 * P / contestant.num_shards(4), bytes_held)


class ConfigTest(unittest.TestCase):
    def test_contestants_differ_in_the_sharding_only(self):
        configs = [c.config(BASE, 9)
                   for c in (STAGE3, HPZ, MICS, QWZ, QGZ, ALL)]
        self.assertEqual(FLAT.config(BASE, 9), STAGE3.config(BASE, 9))
        zeros = [c["engine"].pop("zero_optimization") for c in configs]
        self.assertEqual(configs[0], configs[1])
        self.assertEqual(configs[0], configs[2])
        self.assertEqual(configs[0]["train"], {"steps": 9, "seed": 42})
        self.assertEqual(zeros[1], zeros[0] | {"zero_hpz_partition_size": 2})
        self.assertEqual(zeros[2], zeros[0] | {"mics_shard_size": 2})
        self.assertEqual(zeros[3], zeros[0] | {"zero_quantized_weights": True})
        self.assertEqual(zeros[4],
                         zeros[0] | {"zero_quantized_gradients": True})
        self.assertEqual(zeros[5], zeros[1] | zeros[3] | zeros[4])
        self.assertEqual(zeros[0]["stage3_max_reuse_distance"], 0)

    def test_micro_batches_add_up_to_the_same_step(self):
        shape = crossing.Shape(num_micro_batches=2)
        engine = crossing.contestants(shape)[0].config(BASE, 9)["engine"]
        self.assertEqual(engine["train_micro_batch_size_per_gpu"], 2)
        self.assertEqual(engine["gradient_accumulation_steps"], 2)
        shape = crossing.Shape(num_micro_batches=3)
        with self.assertRaisesRegex(ValueError, "divides 4, found 3"):
            crossing.contestants(shape)[0].config(BASE, 9)


class ChecksTest(unittest.TestCase):
    def notes(self, runs, who=(STAGE3, HPZ, MICS)):
        return crossing.notes(runs, who)

    def test_right_bytes_are_not_worth_a_note(self):
        self.assertEqual(self.notes(good_runs()), [])
        runs = good_runs() + [run_of(FLAT, 4 * ONE_GATHER)]
        self.assertEqual(self.notes(runs, (STAGE3, FLAT, HPZ, MICS)), [])

    def test_a_parameter_byte_of_mics_is_noted(self):
        runs = good_runs()
        runs[2] = run_of(MICS, ONE_GATHER // 8, tokens_per_second=250.0)
        (line,) = self.notes(runs)
        self.assertRegex(line, "mics, round 1: .*expected no parameter byte")

    def test_hpz_that_gathers_across_in_backward_is_noted(self):
        runs = good_runs()
        runs[1] = run_of(HPZ, int(1.2 * ONE_GATHER))
        (line,) = self.notes(runs)
        self.assertRegex(line, "hpz, round 1: 0.60 of stage 3")

    def test_hpz_that_gathers_nothing_across_is_noted(self):
        runs = good_runs()
        runs[1] = run_of(HPZ, ONE_GATHER // 2)
        self.assertRegex(self.notes(runs)[0], "first gather")

    def test_stage_3_that_keeps_parameters_is_noted(self):
        runs = [run_of(STAGE3, ONE_GATHER)]
        self.assertRegex(self.notes(runs)[0], "not gathered again")

    def test_bytes_that_no_collective_sent_are_noted(self):
        runs = [run_of(STAGE3, 2 * ONE_GATHER)]
        runs[0]["wire_bytes_per_step"] *= 1.1
        self.assertRegex(self.notes(runs)[0], "expected .* by what rank 0")
        runs[0]["wire_bytes_per_step"] *= 0.88
        self.assertRegex(self.notes(runs)[0], "expected .* by what rank 0")
        runs[0]["wire_bytes_per_step"] *= 1.018  # before the mark was read
        self.assertEqual(self.notes(runs), [])

    def test_micro_batches_multiply_what_stage_3_sends(self):
        shape = crossing.Shape(num_micro_batches=4)
        who = crossing.contestants(shape)
        runs = [run_of(who[0], 8 * ONE_GATHER, num_micro_batches=4),
                run_of(who[3], 0, tokens_per_second=300.0,
                       num_micro_batches=4)]
        self.assertEqual(self.notes(runs, who), [])

    def test_quantization_that_saves_its_share_is_not_worth_a_note(self):
        coded = ONE_GATHER * 65 / 256
        runs = good_runs() + [run_of(QWZ, 2 * coded),
                              run_of(QGZ, 2 * ONE_GATHER, loss=2.02),
                              run_of(ALL, coded, loss=1.99)]
        who = (STAGE3, HPZ, MICS, QWZ, QGZ, ALL)
        self.assertEqual(self.notes(runs, who), [])

    def test_quantization_that_saves_too_little_is_noted(self):
        who = (STAGE3, QWZ, QGZ, ALL)
        stage3 = run_of(STAGE3, 2 * ONE_GATHER)
        (line,) = self.notes([stage3, run_of(QWZ, ONE_GATHER * 0.6)], who)
        self.assertRegex(line, "gathers cross in 3.* times fewer bytes")
        qgz = run_of(QGZ, 2 * ONE_GATHER)
        qgz["wire_bytes_per_step"] *= 1.1
        self.assertRegex(self.notes([stage3, qgz], who)[0], "MiB cross")
        (line,) = self.notes([stage3, run_of(ALL, ONE_GATHER)], who)
        self.assertRegex(line, r"zero\+\+, round 1: 0.50 of stage 3")
        bad = run_of(QWZ, 2 * ONE_GATHER * 65 / 256, loss=2.1)
        self.assertRegex(self.notes([stage3, bad], who)[0], "the loss is 2.1")

    def test_losses_that_differ_are_noted(self):
        runs = good_runs()
        runs[1]["loss"] = 2.0000001
        runs[2]["loss"] = 2.00001
        (line,) = self.notes(runs)
        self.assertRegex(line, "hpz, round 1: the loss is 2.0000001")
        runs[2]["loss"] = 2.001
        self.assertEqual(len(self.notes(runs)), 2)

    def test_mics_must_be_twice_as_fast_in_the_same_round(self):
        runs = good_runs() + [
            run_of(STAGE3, 2 * ONE_GATHER, number=2, tokens_per_second=1000.0),
            run_of(MICS, 0, number=2, tokens_per_second=1200.0)]
        self.assertEqual(crossing.speed_ratios(runs, "mics"), [2.5, 1.2])
        (line,) = self.notes(runs)
        self.assertIn("1.85 times the speed", line)

    def test_a_failed_contestant_leaves_the_others(self):
        runs = good_runs()
        runs[1] = {"contestant": "hpz", "round": 1, "error": "refused"}
        self.assertEqual(self.notes(runs), ["Failed: hpz, round 1: refused"])
        table = crossing.rows(runs, (STAGE3, HPZ, MICS))
        self.assertEqual([row[0] for row in table], ["stage3", "hpz", "mics"])
        self.assertEqual(table[1][1], "failed")
        self.assertTrue(all(len(row) == len(crossing.HEADER) for row in table))
        self.assertEqual(table[2][-1], "2.50 (2.50-2.50)")


if __name__ == "__main__":
    unittest.main()
