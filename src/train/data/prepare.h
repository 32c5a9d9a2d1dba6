// File: prepare.h
//
// Text files to a folder that training reads: what `nfold data prepare` does.
//
//   PreparedData data = prepare_data({.inputs = {"src"}, .output = "data"});
//   TokenLoader loader({.path = data.train_path(), ...});
//
// The folder holds tokenizer.json, train.bin, val.bin (llm.c's layout, one
// <|endoftext|> before each document) and manifest.json with the hashes and
// sizes of every input file. It appears complete or not at all. When it is
// there already, made from the same text with the same options, nothing is
// done; when it holds anything else, that is an error and stays untouched.
//
// Not collective: one rank prepares, the others wait and call open_prepared.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace nfold::train {

struct PrepareOptions {
  std::vector<std::string> inputs = {};  // as in CorpusOptions
  std::vector<std::string> extensions = {};
  std::filesystem::path output = {};
  // Tokens to learn from the training text; without effect with `tokenizer`.
  std::int64_t vocab_size = 8192;
  double val_fraction = 0.1;
  // A tokenizer.json to use instead of learning one.
  std::filesystem::path tokenizer = {};
  // Called now and then with what is being done, how much of it is done and
  // how much there is.
  std::function<void(std::string_view, std::int64_t, std::int64_t)>
      on_progress = nullptr;
};

struct PreparedData {
  std::filesystem::path folder = {};
  std::int64_t vocab_size = 0;
  std::int64_t num_train_tokens = 0;
  std::int64_t num_val_tokens = 0;
  std::int64_t num_files = 0;
  std::int64_t text_bytes = 0;
  std::string corpus_hash = {};
  bool was_there = false;  // nothing had to be done

  std::filesystem::path train_path() const { return folder / "train.bin"; }
  // Has no tokens if the validation fraction was 0.
  std::filesystem::path val_path() const { return folder / "val.bin"; }
  std::filesystem::path tokenizer_path() const {
    return folder / "tokenizer.json";
  }
};

// Raises c10::ValueError for options that make no sense, missing inputs, or an
// output folder that holds something else; IoError for what cannot be read or
// written.
PreparedData prepare_data(const PrepareOptions& options);

// Whether the folder looks like a prepared one (it has a manifest).
bool is_prepared(const std::filesystem::path& folder);

// Reads a prepared folder's manifest. Raises IoError if it is missing, broken
// or does not agree with the files beside it.
PreparedData open_prepared(const std::filesystem::path& folder);

}  // namespace nfold::train
