#include "train/data/token_loader.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

// With fewer sequences, each is too dear to give one up for cutting the text
// elsewhere in every epoch.
constexpr std::int64_t kManySequences = 64;
// Keeps the random numbers of offsets apart from those of permutations.
constexpr std::uint64_t kOffsetStream = 0x6F66667365740000ULL;

}  // namespace

Rows rows_of(const MicroStep& at) {
  TORCH_CHECK_VALUE(at.num_ranks >= 1 && at.rank >= 0 &&
                        at.rank < at.num_ranks && at.micro_batch >= 1 &&
                        at.micro_step >= 0,
                    "rows_of: rank ", at.rank, " of ", at.num_ranks,
                    ", micro_batch ", at.micro_batch, ", micro_step ",
                    at.micro_step, " is no position in a global batch");
  return {(at.micro_step * at.num_ranks + at.rank) * at.micro_batch,
          at.micro_batch};
}

TokenLoader::TokenLoader(TokenLoaderOptions options)
    : options_(std::move(options)) {
  TORCH_CHECK_VALUE(options_.sequence_length >= 1,
                    "data.sequence_length: expected at least 1 but found ",
                    options_.sequence_length);
  TORCH_CHECK_VALUE(options_.global_batch >= 1,
                    "train_batch_size: expected at least 1 but found ",
                    options_.global_batch);
  if (options_.path.empty()) {
    TORCH_CHECK_VALUE(options_.vocab_size >= 1,
                      "data.synthetic: expected model.vocab_size of at least "
                      "1 but found ",
                      options_.vocab_size);
    return;
  }
  file_.emplace(options_.path);
  const std::int64_t length = options_.sequence_length;
  num_sequences_ = std::max<std::int64_t>(file_->num_tokens() - 1, 0) / length;
  if (options_.order == DataOrder::kShuffled &&
      num_sequences_ > std::max(kManySequences, options_.global_batch)) {
    --num_sequences_;
    num_offsets_ = length;
  }
  check_file_feeds_batch();
  order_.emplace(num_sequences_, options_.seed);
}

void TokenLoader::check_file_feeds_batch() const {
  const std::int64_t needed =
      options_.global_batch * options_.sequence_length + 1;
  TORCH_CHECK_VALUE(
      num_sequences_ >= options_.global_batch, options_.path.string(),
      ": a global batch (micro batch x accumulation steps x ranks) of ",
      options_.global_batch, " sequences of ", options_.sequence_length,
      " tokens needs ", needed, " tokens but the file has ",
      file_->num_tokens(), ", enough for ", num_sequences_,
      " sequences; use fewer ranks, a smaller batch or sequence_length, or "
      "more text");
}

Batch TokenLoader::next(std::int64_t step, std::int64_t row_begin,
                        std::int64_t row_count) const {
  TORCH_CHECK_VALUE(step >= 0, "TokenLoader: step ", step, " is negative");
  TORCH_CHECK_VALUE(
      row_begin >= 0 && row_count >= 1 &&
          row_begin + row_count <= options_.global_batch,
      "TokenLoader: rows ", row_begin, " to ", row_begin + row_count,
      " were asked for but a global batch has ", options_.global_batch,
      "; micro batch x accumulation steps x ranks must give train_batch_size");
  TORCH_CHECK_VALUE(
      options_.order == DataOrder::kShuffled || step < num_batches(),
      "TokenLoader: batch ", step, " was asked for but ",
      options_.path.string(), " has ", num_batches());
  const std::int64_t length = options_.sequence_length;
  Batch batch{at::empty({row_count, length}, at::kLong),
              at::empty({row_count, length}, at::kLong)};
  auto* tokens = batch.tokens.mutable_data_ptr<std::int64_t>();
  auto* targets = batch.targets.mutable_data_ptr<std::int64_t>();
  std::vector<std::int64_t> row(length + 1);
  for (std::int64_t r = 0; r < row_count; ++r) {
    read_row(step * options_.global_batch + row_begin + r, row);
    std::copy_n(row.begin(), length, tokens + r * length);
    std::copy_n(row.begin() + 1, length, targets + r * length);
  }
  return batch;
}

void TokenLoader::read_row(std::int64_t global_row,
                           std::span<std::int64_t> row) const {
  if (file_) {
    file_->read(start_of(global_row), row, options_.vocab_size);
    return;
  }
  const std::int64_t period =
      options_.num_synthetic_batches * options_.global_batch;
  if (period > 0) global_row %= period;
  // bench/peers/tokens.py computes the same.
  const std::uint64_t seed =
      random_bits(options_.seed, static_cast<std::uint64_t>(global_row));
  for (std::size_t i = 0; i < row.size(); ++i) {
    row[i] = static_cast<std::int64_t>(
        random_below(seed, i, static_cast<std::uint64_t>(options_.vocab_size)));
  }
}

std::int64_t TokenLoader::start_of(std::int64_t global_row) const {
  if (options_.order == DataOrder::kSequential) {
    return global_row * options_.sequence_length;
  }
  const std::int64_t epoch = global_row / num_sequences_;
  const auto offset = static_cast<std::int64_t>(random_below(
      options_.seed ^ kOffsetStream, static_cast<std::uint64_t>(epoch),
      static_cast<std::uint64_t>(num_offsets_)));
  return offset + order_->sample(epoch, global_row % num_sequences_) *
                      options_.sequence_length;
}

std::int64_t TokenLoader::num_batches() const {
  if (!file_) return std::numeric_limits<std::int64_t>::max();
  return num_sequences_ / options_.global_batch;
}

std::int64_t TokenLoader::num_tokens() const {
  return file_ ? file_->num_tokens() : 0;
}

}  // namespace nfold::train
