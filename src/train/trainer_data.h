// File: trainer_data.h
//
// The data of a training run: prepared if need be, checked against the model,
// and opened.
//
//   TrainerData data = open_data(config, world);
//   data.train.next(step, rows.begin, rows.count);
#pragma once

#include <optional>

#include "nfold/world.h"
#include "train/data/token_loader.h"
#include "train/data/tokenizer.h"
#include "train/trainer_config.h"

namespace nfold::train {

struct TrainerData {
  TokenLoader train;
  // Empty if there are too few tokens for one batch, or none are wanted.
  std::optional<TokenLoader> validation;
  // Empty for synthetic data.
  std::optional<Tokenizer> tokenizer;
};

// Every rank must call this: rank 0 prepares text while the others wait. Sets
// config.model.vocab_size if the file left it to the tokenizer.
// Raises c10::ValueError when the data does not fit the model or cannot feed
// the ranks, IoError for files that are not as they should be.
TrainerData open_data(TrainerConfig& config, const BatchSizes& batch,
                      const World& world);

}  // namespace nfold::train
