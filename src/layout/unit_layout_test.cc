#include "layout/unit_layout.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

namespace nfold {
namespace {

TEST(UnitLayoutTest, EveryParameterAndShardStartsOn64Bytes) {
  for (std::int64_t item_bytes : {2, 4, 8}) {
    for (std::int64_t shards : {1, 2, 3, 4, 7, 1024}) {
      const auto layout =
          make_unit_layout({0, 1, 2, 7, 8, 1023, 64}, item_bytes, shards);
      for (const auto offset : layout.param_offsets) {
        EXPECT_EQ(offset * item_bytes % kAlignmentBytes, 0);
      }
      EXPECT_EQ(layout.shard_numel * item_bytes % kAlignmentBytes, 0);
      EXPECT_EQ(layout.numel(), shards * layout.shard_numel);
    }
  }
}

TEST(UnitLayoutTest, ParametersDoNotOverlapAndFitInTheRange) {
  const auto layout = make_unit_layout({5, 3, 0, 40, 1}, 4, 3);
  for (std::size_t i = 0; i + 1 < layout.param_offsets.size(); ++i) {
    EXPECT_LE(layout.param_range(i).end(), layout.param_offsets[i + 1]);
  }
  EXPECT_LE(layout.param_range(4).end(), layout.numel());
}

TEST(UnitLayoutTest, ResidueIsLessThanOneAlignmentPerShardAndParameter) {
  for (std::int64_t shards : {1, 2, 3, 4, 8}) {
    const std::vector<std::int64_t> numels{1000, 37, 512, 3};
    const auto layout = make_unit_layout(numels, 4, shards);
    const auto real =
        std::accumulate(numels.begin(), numels.end(), std::int64_t{0});
    EXPECT_LT(layout.numel() - real,
              16 * (shards + static_cast<std::int64_t>(numels.size())));
  }
}

TEST(UnitLayoutTest, FragmentsAndResiduesCoverEveryShardExactlyOnce) {
  for (std::int64_t shards : {1, 2, 3, 4, 5, 64, 1024}) {
    const std::vector<std::int64_t> numels{0, 1, 2, 7, 8, 1023, 130, 5000};
    const auto layout = make_unit_layout(numels, 4, shards);
    std::map<std::size_t, std::int64_t> seen;
    std::int64_t covered = 0;
    for (std::int64_t shard = 0; shard < shards; ++shard) {
      const auto range = shard_range(layout, shard);
      for (const auto& fragment : fragments_in(layout, range)) {
        EXPECT_EQ(fragment.param_begin, seen[fragment.param]);
        EXPECT_EQ(layout.param_offsets[fragment.param] + fragment.param_begin,
                  range.begin + fragment.range_begin);
        seen[fragment.param] += fragment.numel;
        covered += fragment.numel;
      }
      for (const auto& residue : residues_in(layout, range)) {
        EXPECT_GT(residue.numel, 0);
        covered += residue.numel;
      }
    }
    EXPECT_EQ(covered, layout.numel());
    for (std::size_t i = 0; i < numels.size(); ++i) {
      EXPECT_EQ(seen[i], numels[i]);
    }
  }
}

TEST(UnitLayoutTest, ExampleOfTheHeader) {
  const auto layout = make_unit_layout({5, 3, 4}, 4, 2);
  EXPECT_EQ(layout.param_offsets, (std::vector<std::int64_t>{0, 16, 32}));
  EXPECT_EQ(layout.shard_numel, 32);
  EXPECT_EQ(fragments_in(layout, shard_range(layout, 1)),
            (std::vector<Fragment>{{2, 0, 0, 4}}));
}

TEST(UnitLayoutTest, RanksBeyondTheElementsOwnOnlyResidue) {
  const auto layout = make_unit_layout({1}, 4, 4);
  EXPECT_EQ(fragments_in(layout, shard_range(layout, 0)).size(), 1);
  for (int shard : {1, 2, 3}) {
    EXPECT_TRUE(fragments_in(layout, shard_range(layout, shard)).empty());
    EXPECT_EQ(residues_in(layout, shard_range(layout, shard)),
              (std::vector<FlatRange>{shard_range(layout, shard)}));
  }
}

TEST(UnitLayoutTest, BadArgumentsAreRejected) {
  EXPECT_THROW(make_unit_layout({1}, 4, 0), c10::ValueError);
  EXPECT_THROW(make_unit_layout({-1}, 4, 1), c10::ValueError);
  EXPECT_THROW(make_unit_layout({1}, 3, 1), c10::ValueError);
}

}  // namespace
}  // namespace nfold
