// File: token_loader.h
//
// Batches of tokens, in an order that depends on seed and step only. The
// global batch of a step is the same for any number of ranks and micro steps;
// each rank takes its rows of it. The position in the data is the step, so
// nothing has to be saved to resume.
//
//   TokenLoader loader({.path = "data/train.bin", .sequence_length = 256,
//                       .global_batch = 32, .seed = 1, .vocab_size = 8192});
//   for (micro = 0; micro < accumulation; ++micro) {
//     Rows rows = rows_of({.rank = rank, .num_ranks = n, .micro_batch = 8,
//                          .micro_step = micro});
//     Batch batch = loader.next(step, rows.begin, rows.count);
//   }
//
// The text is cut into sequences of sequence_length tokens that do not
// overlap; the target of a token is the token behind it. Every epoch shuffles
// the sequences anew and cuts the text at another place.
//
// Immutable; callable from any thread. Validation: kSequential order, batch
// indices 0 to num_batches() - 1.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <filesystem>
#include <optional>

#include "train/data/sample_order.h"
#include "train/data/token_file.h"

namespace nfold::train {

enum class DataOrder : std::uint8_t {
  kShuffled,    // endless, a new permutation each epoch
  kSequential,  // as in the file, from the start; for validation
};

struct TokenLoaderOptions {
  // A token file. Empty: synthetic data, uniformly random tokens below
  // vocab_size, as many as anyone asks for.
  std::filesystem::path path;
  std::int64_t sequence_length = 0;
  std::int64_t global_batch = 0;  // sequences per step, over all ranks
  std::uint64_t seed = 0;
  // Of the model. A token beyond it is an error; 0: not checked.
  std::int64_t vocab_size = 0;
  // Global batches after which synthetic data repeats; 0: never.
  std::int64_t num_synthetic_batches = 0;
  DataOrder order = DataOrder::kShuffled;
};

struct Batch {
  at::Tensor tokens;   // int64 [rows, sequence_length]
  at::Tensor targets;  // int64 [rows, sequence_length], one token further
};

// Which rows of the global batch a rank takes in a micro step. Micro step m
// of all ranks together takes rows [m, m + 1) * num_ranks * micro_batch, so
// that 2 ranks and 1 rank with 2 micro steps see the same micro-batches.
struct MicroStep {
  std::int64_t rank = 0;
  std::int64_t num_ranks = 1;
  std::int64_t micro_batch = 1;  // rows per rank and micro step
  std::int64_t micro_step = 0;
};
struct Rows {
  std::int64_t begin = 0;
  std::int64_t count = 0;
};
Rows rows_of(const MicroStep& micro_step);

class TokenLoader {
 public:
  // Raises c10::ValueError for sizes < 1 and for a file with fewer sequences
  // than one global batch needs; IoError for a file that is not as it should.
  explicit TokenLoader(TokenLoaderOptions options);

  // Rows [row_begin, row_begin + row_count) of global batch `step`, step >=
  // 0. Raises c10::ValueError for rows outside the global batch, IoError for
  // a token outside the vocabulary.
  Batch next(std::int64_t step, std::int64_t row_begin,
             std::int64_t row_count) const;

  // Full global batches in one epoch; the largest int64 for synthetic data.
  std::int64_t num_batches() const;
  // Tokens in the file, or 0 for synthetic data.
  std::int64_t num_tokens() const;
  const TokenLoaderOptions& options() const { return options_; }

 private:
  void check_file_feeds_batch() const;
  std::int64_t start_of(std::int64_t global_row) const;
  void read_row(std::int64_t global_row, std::span<std::int64_t> row) const;

  TokenLoaderOptions options_;
  std::optional<TokenFile> file_;
  std::optional<SampleOrder> order_;
  std::int64_t num_sequences_ = 0;
  std::int64_t num_offsets_ = 1;  // places where an epoch may start to cut
};

}  // namespace nfold::train
