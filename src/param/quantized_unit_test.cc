// Units whose shards travel, or rest, as the bytes of a codec.
#include <gtest/gtest.h>

#include <optional>

#include "nfold/quantized_collectives.h"
#include "param/sharded_unit_test.h"

namespace nfold {
namespace {

// A unit of one parameter with values that no codec represents.
struct CodedUnit {
  CodedUnit(World& world, std::int64_t numel, at::ScalarType dtype = at::kFloat,
            int secondary_size = 0, bool rests_encoded = false) {
    for (int first = 0; secondary_size > 0 && first < world.size();
         first += secondary_size) {
      std::vector<int> ranks;
      for (int i = 0; i < secondary_size; ++i) ranks.push_back(first + i);
      auto made = world.new_group("coded_secondary", ranks);
      if (made) group = std::move(made);
    }
    auto options = released_options(world, dtype);
    options.groups.secondary = group.get();
    options.codec = kWeightCodec;
    options.rests_encoded = rests_encoded;
    options.is_trained = !rests_encoded;
    if (rests_encoded) options.master_dtype = dtype;
    values = torch::sin(torch::arange(numel) * 0.7 + 1).to(dtype);
    unit.emplace(std::vector<ParamState>{make_param("weight", values.clone())},
                 options);
  }

  at::Tensor param() { return unit->params()[0].tensor().detach().clone(); }
  at::Tensor gathered(GatherMode mode = GatherMode::kAllGather) {
    gather_now({&*unit}, mode);
    return param();
  }

  // What the codec makes of the shards of all ranks.
  at::Tensor decoded() const {
    const auto& layout = unit->layout();
    auto full = torch::zeros({layout.numel()}, values.dtype());
    full.narrow(0, 0, values.numel()).copy_(values);
    for (std::int64_t rank = 0; rank < layout.num_shards; ++rank) {
      const auto range = shard_range(layout, rank);
      auto shard = full.narrow(0, range.begin, range.numel);
      shard.copy_(dequantized(quantized(shard, kWeightCodec), range.numel,
                              values.scalar_type(), kWeightCodec));
    }
    return full.narrow(0, 0, values.numel());
  }
  std::int64_t shard_bytes() const {
    return encoded_bytes(unit->layout().shard_numel, kWeightCodec);
  }

  std::unique_ptr<Group> group;
  at::Tensor values;
  std::optional<ShardedUnit> unit;
};

constexpr std::int64_t kCodedNumels[] = {0, 1, 2, 7, 8, 1023, 5003};

std::int64_t gathered_bytes(Group& group) {
  return group.counts()[static_cast<std::size_t>(Collective::kAllGather)].bytes;
}

TEST(CodedUnitTest, IsWhatTheCodecMakesOfItOnEveryRank) {
  for (const int size : {1, 2, 3, 4, 5, 6}) {
    run_ranks(size, [&](World& world) {
      for (const auto numel : kCodedNumels) {
        for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
          CodedUnit coded(world, numel, dtype);
          auto& unit = *coded.unit;
          const auto before = gathered_bytes(world.group());
          EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
          EXPECT_EQ(gathered_bytes(world.group()) - before,
                    (size - 1) * coded.shard_bytes());
          EXPECT_FALSE(unit.is_exact());
          EXPECT_FALSE(unit.full().slice(0, numel).any().item<bool>());
          unit.release();
          EXPECT_TRUE(
              at::equal(coded.gathered(GatherMode::kExact), coded.values))
              << "shards keep their precision";
          EXPECT_TRUE(unit.is_exact());
        }
      }
    });
  }
}

TEST(CodedUnitTest, SecondaryShardsAreBytesAndGiveTheSameBits) {
  for (const auto& [size, secondary] :
       {std::pair{2, 2}, {4, 2}, {6, 3}, {3, 3}}) {
    run_ranks(size, [&, size = size, secondary = secondary](World& world) {
      for (const auto numel : kCodedNumels) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          CodedUnit coded(world, numel, dtype, secondary);
          auto& unit = *coded.unit;
          const auto at_rest = unit.params_bytes();
          EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
          unit.release();
          ASSERT_EQ(unit.state(), UnitState::kSecondary);
          EXPECT_EQ(unit.params_bytes(),
                    at_rest + size / secondary * coded.shard_bytes());
          for (int i = 0; i < 2; ++i) {
            const auto far = gathered_bytes(world.group());
            const auto near = gathered_bytes(*coded.group);
            EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
            EXPECT_EQ(gathered_bytes(world.group()), far);
            EXPECT_EQ(
                gathered_bytes(*coded.group) - near,
                (secondary - 1) * (size / secondary) * coded.shard_bytes());
            unit.release();
          }
          // Exact values come from the primary shards; the copy stays.
          EXPECT_TRUE(
              at::equal(coded.gathered(GatherMode::kExact), coded.values));
          unit.release();
          ASSERT_EQ(unit.state(), UnitState::kSecondary);
          EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
          unit.release();
        }
      }
    });
  }
}

// Whether a copy was made of decoded values or of exact ones.
TEST(CodedUnitTest, ASecondaryShardOfExactValuesHasTheSameBytes) {
  run_ranks(4, [](World& world) {
    CodedUnit coded(world, 1023, at::kFloat, 2);
    coded.gathered(GatherMode::kExact);
    coded.unit->release();
    ASSERT_EQ(coded.unit->state(), UnitState::kSecondary);
    EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
  });
}

TEST(CodedUnitTest, NewValuesArePublishedFromExactOnes) {
  run_ranks(3, [](World& world) {
    CodedUnit coded(world, 1023);
    auto& unit = *coded.unit;
    unit.owned().mul_(2);
    unit.publish_shard();
    coded.values.mul_(2);
    EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
    EXPECT_THROW(unit.publish_full({0}), c10::Error)
        << "would put decoded values into the shard";
    unit.release();
    gather_now({&unit}, GatherMode::kExact);
    unit.params()[0].tensor().detach()[5] = 0.123F;
    coded.values[5] = 0.123F;
    unit.publish_full({0});
    unit.release();
    EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
    unit.release();
    EXPECT_TRUE(at::equal(coded.gathered(GatherMode::kExact), coded.values));
  });
}

TEST(CodedUnitTest, UnitsWithAndWithoutCodecAreGatheredInOneCall) {
  run_ranks(2, [](World& world) {
    CodedUnit a(world, 1023);
    CodedUnit b(world, 7, at::kBFloat16);
    const auto plain = torch::arange(100) + 0.1;
    ShardedUnit c({make_param("plain", plain.clone())},
                  released_options(world));
    gather_now({&*a.unit, &c, &*b.unit});
    EXPECT_TRUE(at::equal(a.param(), a.decoded()));
    EXPECT_TRUE(at::equal(b.param(), b.decoded()));
    EXPECT_TRUE(at::equal(c.params()[0].tensor().detach(), plain));
    EXPECT_TRUE(c.is_exact());
  });
}

TEST(RestingEncodedTest, HoldsBytesAndGivesWhatTheyStandFor) {
  for (const int size : {1, 2, 3, 4}) {
    run_ranks(size, [&](World& world) {
      for (const auto numel : kCodedNumels) {
        for (const auto dtype : {at::kFloat, at::kBFloat16}) {
          CodedUnit coded(world, numel, dtype, 0, /*rests_encoded=*/true);
          auto& unit = *coded.unit;
          EXPECT_EQ(unit.params_bytes(), coded.shard_bytes());
          for (const auto mode : {GatherMode::kAllGather, GatherMode::kExact}) {
            EXPECT_TRUE(at::equal(coded.gathered(mode), coded.decoded()));
            EXPECT_TRUE(unit.is_exact()) << "there is nothing more exact";
            unit.release();
            EXPECT_EQ(unit.params_bytes(), coded.shard_bytes());
          }
        }
      }
    });
  }
}

TEST(RestingEncodedTest, ValuesMayBeReadAndReplaced) {
  run_ranks(2, [](World& world) {
    CodedUnit coded(world, 1023, at::kFloat, 0, /*rests_encoded=*/true);
    auto& unit = *coded.unit;
    const auto owned = unit.owned();
    const auto begin = unit.owned_range().begin;
    const auto numel = std::min<std::int64_t>(owned.numel(), 1023 - begin);
    EXPECT_TRUE(at::equal(owned.narrow(0, 0, numel),
                          coded.decoded().narrow(0, begin, numel)));
    // Reading does not change anything.
    EXPECT_TRUE(at::equal(coded.gathered(), coded.decoded()));
    EXPECT_EQ(unit.params_bytes(), coded.shard_bytes());
    unit.release();

    unit.owned().fill_(0.3);
    unit.publish_shard();
    EXPECT_EQ(unit.params_bytes(), coded.shard_bytes());
    EXPECT_TRUE(at::equal(coded.gathered(), at::full({1023}, 0.3F)));
    unit.params()[0].tensor().detach().fill_(0.7);
    unit.publish_full({0});
    EXPECT_EQ(unit.params_bytes(), coded.shard_bytes());
    unit.release();
    EXPECT_TRUE(at::equal(coded.gathered(), at::full({1023}, 0.7F)));
  });
}

// Pieces come one by one; coding in between would lose something each time.
TEST(RestingEncodedTest, IsEncodedOnceAllIsThere) {
  run_ranks(2, [](World& world) {
    CodedUnit coded(world, 1023, at::kFloat, 0, /*rests_encoded=*/true);
    ShardedUnit late({make_param("weight", torch::empty({1023}))},
                     coded.unit->options(), InitialValues::kZero);
    for (std::int64_t begin = 0; begin < 1023; begin += 11) {
      const auto numel = std::min<std::int64_t>(11, 1023 - begin);
      late.write_param(0, begin, coded.values.narrow(0, begin, numel));
    }
    EXPECT_EQ(late.params_bytes(), late.layout().shard_numel * 4);
    late.publish_initial();
    EXPECT_EQ(late.params_bytes(), coded.shard_bytes());
    gather_now({&late});
    EXPECT_TRUE(at::equal(late.params()[0].tensor().detach(), coded.decoded()));
  });
}

}  // namespace
}  // namespace nfold
