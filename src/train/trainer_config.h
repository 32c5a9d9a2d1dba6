// File: trainer_config.h
//
// The configuration file of `nfold train`: four sections, model, data, train
// and engine, read strictly.
//
//   auto config = TrainerConfig::read("examples/train.json",
//                                     {"train.steps=100"});
//
// Plain values; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nfold/config.h"
#include "train/models/model_config.h"

namespace nfold::train {

struct DataConfig {
  // A prepared folder, or text to prepare: files, folders, "python-stdlib".
  std::vector<std::string> path;
  // Where text is prepared to. Default: data/ and the configuration's name.
  std::string prepared;
  // Of files to take from folders, such as ".py". Empty: all text.
  std::vector<std::string> extensions;
  // Tokens to learn when text is prepared. 0: model.vocab_size, or 8192.
  std::int64_t vocab_size = 0;
  double val_fraction = 0.1;
  // Default: the model's positions.
  std::int64_t sequence_length = 0;
  // Seeded random tokens instead of text, for benchmarks.
  bool is_synthetic = false;
  // Global batches of synthetic tokens after which they repeat, so that a model
  // can learn them; 0: never.
  std::int64_t synthetic_batches = 0;
};

struct TrainConfig {
  std::int64_t steps = 1000;
  std::int64_t seed = 42;
  // Steps between validations; 0: only at the end.
  std::int64_t eval_interval = 0;
  // Batches of one validation; 0: none at all.
  std::int64_t eval_batches = 16;
  // Steps between saving weights; 0: only at the end.
  std::int64_t save_interval = 0;
  // Save weights at the end. Benchmarks do without.
  bool is_saving = true;
  // A safetensors file of the whole model that training starts from. Empty:
  // random weights.
  std::string weights;
  // Text that the sample at the end continues, and its tokens; 0: no sample.
  std::string sample_prompt = "def ";
  std::int64_t sample_tokens = 160;
};

struct TrainerConfig {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  Config engine;
  // Of the file, without folder and extension.
  std::string name;

  // `overrides` are "train.steps=100" and the like. Raises c10::ValueError
  // with every violation of the file at once, IoError if it cannot be read.
  static TrainerConfig read(const std::string& path,
                            const std::vector<std::string>& overrides);
  // Every key with its value; reading it gives this configuration again.
  std::string to_json_text() const;
};

}  // namespace nfold::train
