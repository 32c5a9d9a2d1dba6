// Bytes sent per rank and step, from the counters in StepReport.
#include "engine/engine_impl.h"
#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

struct Traffic {
  StepReport report;
  std::int64_t numel = 0;  // of all trained units, residue included
  std::int64_t num_units = 0;
  std::int64_t num_buckets = 0;
  std::int64_t first_unit_numel = 0;

  const CommCount& of(Collective collective) const {
    return report.comm[static_cast<std::size_t>(collective)];
  }
};

struct BytesCase {
  int num_ranks = 2;
  ConfigText text{};
  int accumulation_steps = 1;
};

// What rank 0 sent in the second step of a run; all ranks must have sent
// equally much.
Traffic traffic_of(BytesCase c) {
  c.text.optimizer = kAdamW;
  c.text.zero += R"(, "reduce_bucket_size": 1)";
  c.text.more += R"(, "gradient_accumulation_steps": )" +
                 std::to_string(c.accumulation_steps);
  const auto config = config_of(c.text);
  std::vector<Traffic> traffics(static_cast<std::size_t>(c.num_ranks));
  on_ranks(
      c.num_ranks, config,
      [&](World& world, Mesh& mesh) {
        auto& traffic = traffics[static_cast<std::size_t>(world.rank())];
        Tower model(24);
        Engine engine(model, mesh, config);
        for (const auto* unit : engine.impl().model().trained()) {
          traffic.numel += unit->layout().numel();
          if (traffic.num_units == 0) {
            traffic.first_unit_numel = unit->layout().numel();
          }
          ++traffic.num_units;
        }
        traffic.num_buckets =
            traffic.num_units;  // of one element: one unit each
        for (int step = 0; step < 2; ++step) {
          for (int micro = 0; micro < c.accumulation_steps; ++micro) {
            traffic.report =
                train_step(engine, model->loss(step + world.rank()));
          }
        }
      },
      kOverGloo);
  for (const auto& traffic : traffics) {
    EXPECT_TRUE(traffic.report.is_boundary);
    for (int i = 0; i < kNumCollectives; ++i) {
      EXPECT_EQ(traffic.report.comm[i].calls, traffics[0].report.comm[i].calls);
    }
    EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
              traffics[0].of(Collective::kReduceScatter).bytes);
    EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
              traffics[0].of(Collective::kAllGather).bytes);
  }
  return traffics[0];
}

// (N-1)/N of all elements; shards are equally long, so it is exact.
std::int64_t sharded_bytes(const Traffic& traffic, int num_ranks,
                           std::int64_t item_bytes) {
  return traffic.numel / num_ranks * (num_ranks - 1) * item_bytes;
}

// Of the gradient norm: one sum of two fp64 for each unit.
std::int64_t norm_bytes(const Traffic& traffic, int num_ranks) {
  return traffic.num_units * (num_ranks - 1) * 16;
}

// Every backward agrees on late gradients with one byte for each bucket,
// all-reduced: at most twice that.
void expect_only_late_flags(const Traffic& traffic, int num_backwards) {
  const auto& count = traffic.of(Collective::kAllReduce);
  EXPECT_EQ(count.calls, num_backwards);
  EXPECT_LE(count.bytes, 2 * traffic.num_buckets * num_backwards);
}

TEST(EngineBytes, StagesOneAndTwoReduceScatterAndGatherOnce) {
  for (const int stage : {1, 2}) {
    for (const int num_ranks : {2, 3, 4}) {
      SCOPED_TRACE(std::to_string(stage) + "/" + std::to_string(num_ranks));
      const auto traffic =
          traffic_of({.num_ranks = num_ranks, .text = {.stage = stage}});
      const auto& reduced = traffic.of(Collective::kReduceScatter);
      EXPECT_EQ(reduced.calls, traffic.num_buckets);
      EXPECT_EQ(reduced.bytes, sharded_bytes(traffic, num_ranks, 4));
      const auto& gathered = traffic.of(Collective::kAllGather);
      EXPECT_EQ(gathered.calls, 2);  // parameters, norm
      EXPECT_EQ(gathered.bytes, sharded_bytes(traffic, num_ranks, 4) +
                                    norm_bytes(traffic, num_ranks));
      expect_only_late_flags(traffic, 1);
      EXPECT_EQ(traffic.of(Collective::kBroadcast).calls, 0);
      EXPECT_EQ(traffic.of(Collective::kAllToAll).calls, 0);
      EXPECT_EQ(traffic.of(Collective::kBarrier).calls, 0);
    }
  }
}

TEST(EngineBytes, StageZeroAllReducesAndGathersNothing) {
  for (const int num_ranks : {2, 3}) {
    const auto traffic =
        traffic_of({.num_ranks = num_ranks, .text = {.stage = 0}});
    const auto& reduced = traffic.of(Collective::kAllReduce);
    EXPECT_EQ(reduced.calls, traffic.num_units + 1);
    const auto gradients = 2 * sharded_bytes(traffic, num_ranks, 4);
    EXPECT_GE(reduced.bytes, gradients);
    EXPECT_LE(reduced.bytes, gradients + 2 * traffic.num_buckets);
    EXPECT_EQ(traffic.of(Collective::kReduceScatter).calls, 0);
    EXPECT_EQ(traffic.of(Collective::kAllGather).calls, 0);
  }
}

TEST(EngineBytes, StageThreeGathersTwiceAndReducesOncePerMicroBatch) {
  for (const int num_ranks : {2, 3, 4}) {
    for (const int micro_batches : {1, 3}) {
      SCOPED_TRACE(fmt::format("{} ranks, {}", num_ranks, micro_batches));
      const auto traffic = traffic_of(
          {.num_ranks = num_ranks,
           .text = {.stage = 3,
                    .zero = R"(, "stage3_param_persistence_threshold": 0,
                                "stage3_max_reuse_distance": 0)"},
           .accumulation_steps = micro_batches});
      const auto once = sharded_bytes(traffic, num_ranks, 4);
      // Nothing needs the gradient of the first block's input, so backward
      // never touches that block.
      const auto first_block =
          traffic.first_unit_numel / num_ranks * (num_ranks - 1) * 4;
      EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
                micro_batches * once);
      EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
                micro_batches * (2 * once - first_block) +
                    norm_bytes(traffic, num_ranks));
      expect_only_late_flags(traffic, micro_batches);
    }
  }
}

TEST(EngineBytes, StageThreeGathersOnceWhereEverythingMayBeReused) {
  const auto traffic = traffic_of(
      {.text = {.stage = 3,
                .zero = R"(, "stage3_param_persistence_threshold": 0)"},
       .accumulation_steps = 3});
  EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
            sharded_bytes(traffic, 2, 4) + norm_bytes(traffic, 2));
}

TEST(EngineBytes, OneRankSendsNothing) {
  for (const int stage : {0, 1, 2, 3}) {
    const auto traffic = traffic_of({.num_ranks = 1, .text = {.stage = stage}});
    for (const auto& count : traffic.report.comm) EXPECT_EQ(count.bytes, 0);
  }
}

TEST(EngineBytes, LowPrecisionTravelsInTwoBytes) {
  const auto traffic = traffic_of({.text = {.more = kBf16}});
  EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
            sharded_bytes(traffic, 2, 2));
  EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
            sharded_bytes(traffic, 2, 2) + norm_bytes(traffic, 2));
}

TEST(EngineBytes, CommunicationDtypeIsOfGradientsOnly) {
  const auto traffic =
      traffic_of({.text = {.more = std::string(kBf16) +
                                   R"(, "communication_data_type": "fp32")"}});
  EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
            sharded_bytes(traffic, 2, 4));
  EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
            sharded_bytes(traffic, 2, 2) + norm_bytes(traffic, 2));
}

TEST(EngineBytes, EveryMicroBatchReducesAndOnlyTheBoundaryGathers) {
  for (const int stage : {1, 2}) {
    const auto traffic =
        traffic_of({.text = {.stage = stage}, .accumulation_steps = 3});
    EXPECT_EQ(traffic.of(Collective::kReduceScatter).calls,
              3 * traffic.num_buckets);
    EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
              3 * sharded_bytes(traffic, 2, 4));
    EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
              sharded_bytes(traffic, 2, 4) + norm_bytes(traffic, 2));
    expect_only_late_flags(traffic, 3);
  }
}

TEST(EngineBytes, ReduceAtBoundaryReducesOnce) {
  const auto traffic = traffic_of(
      {.text = {.stage = 1, .zero = R"(, "reduce_at_boundary": true)"},
       .accumulation_steps = 3});
  EXPECT_EQ(traffic.of(Collective::kReduceScatter).calls, traffic.num_buckets);
  EXPECT_EQ(traffic.of(Collective::kReduceScatter).bytes,
            sharded_bytes(traffic, 2, 4));
}

TEST(EngineBytes, WithoutReduceScatterGradientsAreAllReduced) {
  const auto traffic =
      traffic_of({.text = {.zero = R"(, "reduce_scatter": false)"}});
  EXPECT_EQ(traffic.of(Collective::kReduceScatter).calls, 0);
  const auto gradients = 2 * sharded_bytes(traffic, 2, 4);
  EXPECT_GE(traffic.of(Collective::kAllReduce).bytes, gradients);
  EXPECT_LE(traffic.of(Collective::kAllReduce).bytes,
            gradients + 2 * traffic.num_buckets);
  EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
            sharded_bytes(traffic, 2, 4) + norm_bytes(traffic, 2));
}

TEST(EngineBytes, SmallGatherBucketsSendTheSameBytesInMoreCalls) {
  const auto traffic =
      traffic_of({.text = {.zero = R"(, "allgather_bucket_size": 2)"}});
  EXPECT_EQ(traffic.of(Collective::kAllGather).calls, traffic.num_units + 1);
  EXPECT_EQ(traffic.of(Collective::kAllGather).bytes,
            sharded_bytes(traffic, 2, 4) + norm_bytes(traffic, 2));
}

TEST(EngineBytes, GradientsOfUnusedUnitsAreNotSent) {
  const auto config = config_of({.zero = R"(, "reduce_bucket_size": 1)"});
  on_ranks(
      2, config,
      [&](World& world, Mesh& mesh) {
        Vectors model(std::vector<std::int64_t>{64, 64});
        Engine engine(model, mesh, config);
        // Rank 1 uses w0 only.
        const auto loss =
            world.rank() == 0 ? model->loss(1) : model->term(0, 2);
        const auto report = train_step(engine, loss);
        const auto sent =
            report.comm[static_cast<std::size_t>(Collective::kReduceScatter)];
        EXPECT_EQ(sent.calls, 2);
        EXPECT_EQ(sent.bytes, (world.rank() == 0 ? 2 : 1) * 32 * 4);
      },
      kOverGloo);
}

}  // namespace
}  // namespace nfold::testing
