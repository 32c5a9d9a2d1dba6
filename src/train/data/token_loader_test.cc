#include "train/data/token_loader.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "nfold/errors.h"
#include "testing/raised_text.h"
#include "train/data/token_file.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Token i is i modulo vocab.
void write_tokens(const std::filesystem::path& path, std::int64_t count,
                  TokenId vocab = 65536) {
  std::vector<TokenId> ids(count);
  for (std::int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<TokenId>(i % vocab);
  }
  TokenFileWriter writer(path);
  writer.append(ids);
  writer.close();
}

class TokenFileTest : public testing::Test {
 protected:
  void patch(std::int64_t offset, std::int32_t value) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset);
    file.write(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  std::string open_error() {
    return text_of<IoError>([&] { TokenFile file(path_); });
  }

  TestFolder folder_;
  std::filesystem::path path_ = folder_ / "train.bin";
};

TEST_F(TokenFileTest, HasTheLayoutOfLlmC) {
  write_tokens(path_, 5);
  ASSERT_EQ(std::filesystem::file_size(path_), 1024U + 10U);
  std::ifstream file(path_, std::ios::binary);
  std::vector<std::int32_t> header(256);
  file.read(reinterpret_cast<char*>(header.data()), 1024);
  EXPECT_EQ(header[0], 20240520);
  EXPECT_EQ(header[1], 1);
  EXPECT_EQ(header[2], 5);
  EXPECT_TRUE(std::all_of(header.begin() + 3, header.end(),
                          [](std::int32_t x) { return x == 0; }));
  std::vector<std::uint16_t> tokens(5);
  file.read(reinterpret_cast<char*>(tokens.data()), 10);
  EXPECT_EQ(tokens, (std::vector<std::uint16_t>{0, 1, 2, 3, 4}));
}

TEST_F(TokenFileTest, ReadsWhatWasWritten) {
  write_tokens(path_, 70000);
  const TokenFile file(path_);
  EXPECT_EQ(file.num_tokens(), 70000);
  std::vector<std::int64_t> out(3);
  file.read(65534, out);
  EXPECT_EQ(out, (std::vector<std::int64_t>{65534, 65535, 0}));
  EXPECT_THROW(file.read(69998, out), c10::ValueError);
  EXPECT_THROW(file.read(-1, out), c10::ValueError);
}

TEST_F(TokenFileTest, NamesWhatIsWrongWithAFile) {
  EXPECT_THAT(open_error(), AllOf(HasSubstr("train.bin"), HasSubstr("open")));
  std::ofstream(path_) << "short";
  EXPECT_THAT(open_error(), HasSubstr("it has 5 bytes"));
  std::ofstream(path_) << "";
  EXPECT_THAT(open_error(), HasSubstr("it has 0 bytes"));
  write_tokens(path_, 100);
  patch(0, 7);
  EXPECT_THAT(open_error(), HasSubstr("it begins with 7"));
  write_tokens(path_, 100);
  patch(4, 2);
  EXPECT_THAT(open_error(), HasSubstr("version 1 but found 2"));
  write_tokens(path_, 100);
  std::filesystem::resize_file(path_, 1024 + 150);
  EXPECT_THAT(open_error(), HasSubstr("100 tokens in 200 bytes but 150"));
  EXPECT_THAT(open_error(), HasSubstr("truncated"));
  write_tokens(path_, 100);
  patch(8, 99);
  EXPECT_THAT(open_error(), HasSubstr("damaged"));
  patch(8, -100);
  EXPECT_THAT(open_error(), HasSubstr("-100 tokens"));
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_THAT(open_error(), HasSubstr("found a folder"));
}

TEST_F(TokenFileTest, RefusesFileOfInterruptedWriter) {
  {
    TokenFileWriter writer(path_);
    writer.append(std::vector<TokenId>(10, 1));
  }
  EXPECT_THAT(open_error(), HasSubstr("damaged"));
}

TEST_F(TokenFileTest, NamesTokenOutsideVocabulary) {
  write_tokens(path_, 100);
  const TokenFile file(path_);
  file.check_vocabulary(100);
  EXPECT_THAT(text_of<IoError>([&] { file.check_vocabulary(60); }),
              AllOf(HasSubstr("token 60 of 100 is 60"),
                    HasSubstr("vocabulary has 60")));
  std::vector<std::int64_t> out(50);
  file.read(10, out, 60);
  EXPECT_THAT(text_of<IoError>([&] { file.read(40, out, 60); }),
              HasSubstr("token 60 of 100 is 60"));
}

TEST_F(TokenFileTest, WriterRefusesWhatIsNoUint16) {
  TokenFileWriter writer(path_);
  EXPECT_THROW(writer.append(std::vector<TokenId>{65536}), c10::ValueError);
  EXPECT_THROW(writer.append(std::vector<TokenId>{-1}), c10::ValueError);
}

TEST_F(TokenFileTest, FullDiskIsAnErrorWithThePath) {
  TokenFileWriter writer("/dev/full");
  const std::vector<TokenId> ids(10, 1);
  EXPECT_THAT(text_of<IoError>([&] {
                writer.append(ids);
                writer.close();
              }),
              AllOf(HasSubstr("/dev/full"), HasSubstr("No space left")));
}

TEST(SampleOrderTest, IsAPermutationOfEachEpoch) {
  for (const std::int64_t n : {1, 2, 3, 5, 64, 65, 1000}) {
    const SampleOrder order(n, 42);
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::set<std::int64_t> seen;
      for (std::int64_t i = 0; i < n; ++i) seen.insert(order.sample(epoch, i));
      EXPECT_EQ(std::ssize(seen), n);
      EXPECT_EQ(*seen.begin(), 0);
      EXPECT_EQ(*seen.rbegin(), n - 1);
    }
  }
}

TEST(SampleOrderTest, DiffersByEpochAndSeed) {
  const SampleOrder order(1000, 1);
  const SampleOrder other(1000, 2);
  int same_epoch = 0;
  int same_seed = 0;
  int fixed = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    same_epoch += order.sample(0, i) == order.sample(1, i);
    same_seed += order.sample(0, i) == other.sample(0, i);
    fixed += order.sample(0, i) == i;
  }
  EXPECT_LT(same_epoch, 10);
  EXPECT_LT(same_seed, 10);
  EXPECT_LT(fixed, 10);
}

TEST(SampleOrderTest, SpreadsSamplesEvenly) {
  // Mean position of the samples of the first half: 1000 +- 5 standard
  // deviations of a random permutation.
  const SampleOrder order(2000, 9);
  double sum = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    sum += static_cast<double>(order.sample(0, i));
  }
  EXPECT_NEAR(sum / 1000, 1000, 65);
}

TEST(RandomBelow, ReachesAllValuesOnly) {
  std::map<std::uint64_t, int> counts;
  for (std::uint64_t i = 0; i < 5000; ++i) ++counts[random_below(3, i, 5)];
  ASSERT_EQ(counts.size(), 5U);
  for (const auto& [value, count] : counts) EXPECT_NEAR(count, 1000, 150);
}

class TokenLoaderTest : public testing::Test {
 protected:
  void SetUp() override { write_tokens(path_, 2001); }

  TokenLoaderOptions options() const {
    return {.path = path_,
            .sequence_length = 10,
            .global_batch = 12,
            .seed = 5,
            .vocab_size = 4000};
  }

  TestFolder folder_;
  std::filesystem::path path_ = folder_ / "train.bin";
};

TEST_F(TokenLoaderTest, TargetsAreOneTokenFurther) {
  const Batch batch = TokenLoader(options()).next(0, 0, 12);
  ASSERT_EQ(batch.tokens.sizes(), (at::IntArrayRef{12, 10}));
  ASSERT_EQ(batch.tokens.scalar_type(), at::kLong);
  // Token i of the file is i.
  EXPECT_TRUE(at::equal(batch.targets, batch.tokens + 1));
}

TEST_F(TokenLoaderTest, AnySplitSeesTheSameGlobalBatch) {
  for (const bool is_synthetic : {false, true}) {
    TokenLoaderOptions all = options();
    all.global_batch = 36;
    if (is_synthetic) all.path.clear();
    const TokenLoader loader(all);
    for (const std::int64_t step : {0, 7, 400}) {
      const Batch whole = loader.next(step, 0, 36);
      for (const std::int64_t num_ranks : {1, 2, 3, 4}) {
        for (const std::int64_t micro_steps : {1, 3}) {
          const std::int64_t micro_batch = 36 / num_ranks / micro_steps;
          std::vector<at::Tensor> parts;
          for (std::int64_t m = 0; m < micro_steps; ++m) {
            for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
              const Rows rows = rows_of({.rank = rank,
                                         .num_ranks = num_ranks,
                                         .micro_batch = micro_batch,
                                         .micro_step = m});
              // Another process has another loader.
              parts.push_back(
                  TokenLoader(all).next(step, rows.begin, rows.count).tokens);
            }
          }
          EXPECT_TRUE(at::equal(at::cat(parts), whole.tokens));
        }
      }
    }
  }
}

TEST_F(TokenLoaderTest, EpochCoversEachSequenceOnce) {
  const TokenLoader loader(options());
  // 200 sequences, one given up for the random offset.
  EXPECT_EQ(loader.num_batches(), 199 / 12);
  std::map<std::int64_t, int> starts;
  for (std::int64_t row = 0; row < 199; ++row) {
    const Batch batch = loader.next(row / 12, row % 12, 1);
    ++starts[batch.tokens[0][0].item<std::int64_t>()];
  }
  EXPECT_EQ(starts.size(), 199U);
  const std::int64_t offset = starts.begin()->first;
  for (const auto& [start, count] : starts) {
    EXPECT_EQ(start % 10, offset % 10);
    EXPECT_EQ(count, 1);
  }
}

TEST_F(TokenLoaderTest, SeedChangesTheOrder) {
  TokenLoaderOptions other = options();
  other.seed = 6;
  EXPECT_FALSE(at::equal(TokenLoader(options()).next(0, 0, 12).tokens,
                         TokenLoader(other).next(0, 0, 12).tokens));
}

TEST_F(TokenLoaderTest, EpochsAreCutAtOtherPlaces) {
  const TokenLoader loader(options());
  std::set<std::int64_t> offsets;
  for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
    const std::int64_t row = epoch * 199;
    const Batch batch = loader.next(row / 12, row % 12, 1);
    offsets.insert(batch.tokens[0][0].item<std::int64_t>() % 10);
  }
  EXPECT_GT(offsets.size(), 4U);
}

TEST_F(TokenLoaderTest, ValidationReadsInOrder) {
  TokenLoaderOptions in_order = options();
  in_order.order = DataOrder::kSequential;
  const TokenLoader loader(in_order);
  EXPECT_EQ(loader.num_batches(), 16);
  const Batch batch = loader.next(1, 2, 2);
  EXPECT_EQ(batch.tokens[0][0].item<std::int64_t>(), 140);
  EXPECT_EQ(batch.tokens[1][9].item<std::int64_t>(), 159);
  EXPECT_THROW(loader.next(16, 0, 1), c10::ValueError);
}

TEST_F(TokenLoaderTest, SmallestFileThatFeedsOneBatch) {
  write_tokens(path_, 121);
  const TokenLoader loader(options());
  const Batch batch = loader.next(3, 0, 12);
  const at::Tensor starts = std::get<0>(batch.tokens.select(1, 0).sort());
  EXPECT_TRUE(at::equal(starts, at::arange(0, 120, 10)));
}

TEST_F(TokenLoaderTest, NamesWorldThatTheDataCannotFeed) {
  write_tokens(path_, 120);
  EXPECT_THAT(text_of<c10::ValueError>([&] { TokenLoader loader(options()); }),
              AllOf(HasSubstr("needs 121 tokens but the file has 120"),
                    HasSubstr("fewer ranks")));
  write_tokens(path_, 0);
  EXPECT_THAT(text_of<c10::ValueError>([&] { TokenLoader loader(options()); }),
              HasSubstr("the file has 0"));
}

TEST_F(TokenLoaderTest, NamesTokenOutsideTheModelsVocabulary) {
  TokenLoaderOptions small = options();
  small.vocab_size = 1000;
  const TokenLoader loader(small);
  EXPECT_THAT(text_of<IoError>([&] {
                for (int step = 0; step < 16; ++step) loader.next(step, 0, 12);
              }),
              AllOf(HasSubstr("train.bin: token 1"),
                    HasSubstr("the vocabulary has 1000")));
}

TEST_F(TokenLoaderTest, RefusesRowsOutsideTheBatch) {
  const TokenLoader loader(options());
  EXPECT_THROW(loader.next(0, 8, 5), c10::ValueError);
  EXPECT_THROW(loader.next(0, -1, 2), c10::ValueError);
  EXPECT_THROW(loader.next(0, 0, 0), c10::ValueError);
  EXPECT_THROW(loader.next(-1, 0, 1), c10::ValueError);
  EXPECT_THROW(rows_of({.rank = 2, .num_ranks = 2}), c10::ValueError);
  TokenLoaderOptions bad = options();
  bad.sequence_length = 0;
  EXPECT_THROW(TokenLoader{bad}, c10::ValueError);
  bad = options();
  bad.path.clear();
  bad.vocab_size = 0;
  EXPECT_THROW(TokenLoader{bad}, c10::ValueError);
}

TEST_F(TokenLoaderTest, SyntheticTokensStayBelowVocabulary) {
  TokenLoaderOptions synthetic = options();
  synthetic.path.clear();
  synthetic.vocab_size = 3;
  const Batch batch = TokenLoader(synthetic).next(12, 0, 12);
  EXPECT_EQ(batch.tokens.min().item<std::int64_t>(), 0);
  EXPECT_EQ(batch.tokens.max().item<std::int64_t>(), 2);
  EXPECT_TRUE(
      at::equal(batch.targets.slice(1, 0, 9), batch.tokens.slice(1, 1, 10)));
}

TEST_F(TokenLoaderTest, SyntheticTokensRepeatAfterSoManyBatches) {
  TokenLoaderOptions synthetic = options();
  synthetic.path.clear();
  synthetic.vocab_size = 1000;
  const auto tokens = [&](std::int64_t step) {
    return TokenLoader(synthetic).next(step, 0, 12).tokens;
  };
  EXPECT_FALSE(at::equal(tokens(0), tokens(2)));
  synthetic.num_synthetic_batches = 2;
  EXPECT_TRUE(at::equal(tokens(0), tokens(2)));
  EXPECT_TRUE(at::equal(tokens(1), tokens(401)));
  EXPECT_FALSE(at::equal(tokens(0), tokens(1)));
}

// What bench/peers/tokens.py computes and its test expects: the peers of a
// benchmark must train on the same tokens.
TEST_F(TokenLoaderTest, SyntheticTokensAreThoseOfThePeers) {
  TokenLoaderOptions synthetic;
  synthetic.sequence_length = 4;
  synthetic.global_batch = 2;
  synthetic.seed = 42;
  synthetic.vocab_size = 50304;
  const TokenLoader loader(synthetic);
  EXPECT_TRUE(at::equal(
      loader.next(0, 0, 2).tokens,
      at::tensor({37999, 22446, 12247, 36280, 9922, 11224, 11495, 37936},
                 at::kLong)
          .view({2, 4})));
  EXPECT_TRUE(at::equal(
      loader.next(3, 1, 1).targets,
      at::tensor({15818, 36495, 7900, 29890}, at::kLong).view({1, 4})));
}

}  // namespace
}  // namespace nfold::train
