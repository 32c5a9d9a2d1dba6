#include "nfold/report.h"

#include "engine/engine_test.h"

namespace nfold::testing {
namespace {

using ::testing::HasSubstr;

TEST(MemoryTable, HasEachOwnerItsBytesAndItsPart) {
  MemoryReport report;
  report.params_bytes = 4 << 20;
  report.grads_bytes = 2 << 20;
  report.optimizer_bytes = 8 << 20;
  report.bucket_peak_bytes = 1 << 20;
  report.gathered_peak_bytes = 512 << 10;
  report.peak_rss_bytes = 40 << 20;
  EXPECT_EQ(memory_table(report),
            "parameters                  4.00 MiB   10.0%\n"
            "gathered parameters, peak    512 KiB    1.2%\n"
            "gradients, peak             2.00 MiB    5.0%\n"
            "gradient buckets, peak      1.00 MiB    2.5%\n"
            "optimizer state             8.00 MiB   20.0%\n"
            "everything else             24.5 MiB   61.2%\n"
            "process, peak               40.0 MiB  100.0%\n");
}

TEST(MemoryTable, OfAnEngineShowsWhatItHolds) {
  const auto config = config_of({.stage = 2, .optimizer = kAdamW});
  on_ranks(2, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{64 << 10});
    Engine engine(model, mesh, config);
    train_step(engine, model->loss(world.rank()));
    const auto table = memory_table(engine.memory());
    EXPECT_THAT(table, HasSubstr("parameters                   256 KiB"));
    EXPECT_THAT(table, HasSubstr("optimizer state"));
  });
}

TEST(MemoryTable, OfAnEmptyReportIsAllZeros) {
  EXPECT_THAT(memory_table({}),
              HasSubstr("process, peak                    0 B"));
}

}  // namespace
}  // namespace nfold::testing
