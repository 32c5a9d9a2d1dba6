#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/config.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Size = std::optional<std::int64_t>;
constexpr auto kNone = std::nullopt;

Config config_of(Size batch, Size micro, Size steps) {
  Config config;
  config.train_batch_size = batch;
  config.train_micro_batch_size_per_gpu = micro;
  config.gradient_accumulation_steps = steps;
  return config;
}

std::string error_of(Size batch, Size micro, Size steps, int ranks) {
  try {
    resolve_batch(config_of(batch, micro, steps), ranks);
  } catch (const c10::ValueError& error) {
    return message_of(error);
  }
  return "";
}

struct Case {
  Size batch, micro, steps;
  int ranks;
  BatchSizes expected;
};

TEST(ResolveBatch, AnyTwoGiveTheThird) {
  const Case cases[] = {
      {32, 2, 4, 4, {32, 2, 4}},         {32, 2, kNone, 4, {32, 2, 4}},
      {32, kNone, 4, 4, {32, 2, 4}},     {kNone, 2, 4, 4, {32, 2, 4}},
      {32, kNone, kNone, 4, {32, 8, 1}}, {kNone, 2, kNone, 4, {8, 2, 1}},
      {32, 16, 1, 2, {32, 16, 1}},       {32, 16, kNone, 2, {32, 16, 1}},
      {32, kNone, 1, 2, {32, 16, 1}},    {kNone, 16, 1, 2, {32, 16, 1}},
      {32, 8, 2, 2, {32, 8, 2}},         {32, 8, kNone, 2, {32, 8, 2}},
      {32, kNone, 2, 2, {32, 8, 2}},     {kNone, 8, 2, 2, {32, 8, 2}},
  };
  for (const Case& given : cases) {
    const BatchSizes sizes = resolve_batch(
        config_of(given.batch, given.micro, given.steps), given.ranks);
    EXPECT_EQ(sizes.train_batch_size, given.expected.train_batch_size);
    EXPECT_EQ(sizes.train_micro_batch_size_per_gpu,
              given.expected.train_micro_batch_size_per_gpu);
    EXPECT_EQ(sizes.gradient_accumulation_steps,
              given.expected.gradient_accumulation_steps);
  }
}

TEST(ResolveBatch, NeedsABatchOrAMicroBatch) {
  for (const Size steps : {Size(kNone), Size(4)}) {
    EXPECT_THAT(error_of(kNone, kNone, steps, 4),
                HasSubstr("train_batch_size or train_micro_batch_size_per_gpu: "
                          "one of the two is needed"));
  }
}

TEST(ResolveBatch, SizesThatDoNotMultiplyOutNameWhatFits) {
  EXPECT_EQ(error_of(33, 2, kNone, 4),
            "train_batch_size: expected a multiple of "
            "train_micro_batch_size_per_gpu 2 x 4 ranks but found 33; the "
            "nearest that fit are 32 or 40");
  EXPECT_THAT(error_of(30, kNone, kNone, 4),
              HasSubstr("expected a multiple of 4 ranks but found 30; the "
                        "nearest that fit are 28 or 32"));
  EXPECT_EQ(error_of(32, 2, 3, 4),
            "train_batch_size: expected 24 (train_micro_batch_size_per_gpu 2 x "
            "gradient_accumulation_steps 3 x 4 ranks) but found 32; correct "
            "it, or leave one of the three out");
  EXPECT_THAT(error_of(2, kNone, kNone, 4),
              HasSubstr("expected a multiple of 4 ranks but found 2; the "
                        "nearest that fit are 4"));
  EXPECT_THAT(error_of(33, 17, 2, 2), HasSubstr("expected 68"));
  EXPECT_THAT(error_of(32, 18, 1, 2), HasSubstr("expected 36"));
  EXPECT_THAT(error_of(33, 17, kNone, 2), HasSubstr("expected a multiple"));
  EXPECT_THAT(error_of(33, kNone, 2, 2),
              HasSubstr("gradient_accumulation_steps 2 x 2 ranks"));
}

TEST(ResolveBatch, SizesMustBePositive) {
  EXPECT_THAT(error_of(0, kNone, kNone, 4),
              HasSubstr("train_batch_size: expected an integer of at least 1 "
                        "but found 0"));
  EXPECT_THAT(error_of(kNone, 0, kNone, 4),
              HasSubstr("train_micro_batch_size_per_gpu: expected"));
  EXPECT_THAT(error_of(32, kNone, -1, 4),
              HasSubstr("gradient_accumulation_steps: expected"));
  EXPECT_THAT(error_of(32, kNone, kNone, 0), HasSubstr("data_parallel_size"));
}

TEST(ResolveBatch, HugeSizesAreErrorsNotOverflow) {
  const std::int64_t huge = std::int64_t{1} << 40;
  EXPECT_THAT(error_of(kNone, huge, huge, 4),
              HasSubstr("train_batch_size: the product"));
  EXPECT_THAT(error_of(32, huge, huge, 4), HasSubstr("the product"));
}

Config axes_of(Size data, std::int64_t sequence, std::int64_t tensor) {
  Config config;
  config.data_parallel_size = data;
  config.sequence_parallel_size = sequence;
  config.tensor_parallel_size = tensor;
  return config;
}

std::string axes_error(const Config& config, int world_size) {
  try {
    data_parallel_size_of(config, world_size);
  } catch (const c10::ValueError& error) {
    return message_of(error);
  }
  return "";
}

TEST(DataParallelSize, IsWhatSequenceAndTensorLeaveOfTheWorld) {
  EXPECT_EQ(data_parallel_size_of(Config(), 6), 6);
  EXPECT_EQ(data_parallel_size_of(axes_of(kNone, 2, 1), 6), 3);
  EXPECT_EQ(data_parallel_size_of(axes_of(kNone, 2, 3), 6), 1);
  EXPECT_EQ(data_parallel_size_of(axes_of(2, 2, 2), 8), 2);
}

TEST(DataParallelSize, SizesThatDoNotMultiplyToTheWorldAreNamed) {
  EXPECT_THAT(axes_error(axes_of(kNone, 1, 3), 8),
              AllOf(HasSubstr("world size 8 is not divisible by 3"),
                    HasSubstr("tensor_parallel_size (3)")));
  EXPECT_THAT(axes_error(axes_of(3, 1, 2), 8),
              AllOf(HasSubstr("data_parallel_size (3)"),
                    HasSubstr("tensor_parallel_size (2)"),
                    HasSubstr("must be the world size 8; use 4")));
  EXPECT_THAT(axes_error(axes_of(kNone, 16, 1), 8),
              HasSubstr("8 is not divisible by 16"));
  const std::int64_t huge = std::int64_t{1} << 40;
  EXPECT_THAT(axes_error(axes_of(kNone, huge, huge), 8),
              HasSubstr("is not divisible by"));
  EXPECT_THAT(axes_error(axes_of(kNone, 1, huge + 1), 8),
              HasSubstr("is not divisible by"));
  EXPECT_THAT(axes_error(axes_of(kNone, 0, 1), 8),
              HasSubstr("sequence_parallel_size: expected at least 1"));
}

}  // namespace
}  // namespace nfold
