// File: generate.h
//
// Text from a language model, token by token.
//
//   std::string text = generate(*model, tokenizer, "def ", {.max_tokens = 64});
//
// With equal weights, options and prompt the text is equal, on any rank. With
// several ranks that share a sharded model, all must call it alike. Not
// thread-safe, since modules are not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/data/tokenizer.h"
#include "train/models/causal_lm.h"

namespace nfold::train {

struct GenerateOptions {
  std::int64_t max_tokens = 200;
  // 0: always the likeliest token. Below 1 sharper, above 1 flatter.
  double temperature = 0.8;
  // Only the k likeliest tokens are drawn from; 0: all.
  std::int64_t top_k = 50;
  std::uint64_t seed = 0;
  // Positions that the model has; older tokens are forgotten.
  std::int64_t max_positions = 0;
  // Only tokens below this are drawn: a model may have more entries than its
  // tokenizer has tokens. 0: all of the model's.
  std::int64_t num_tokens = 0;
};

// Tokens that follow `prompt`. Ends early at `end_token` (not part of the
// result); negative: never. Raises c10::ValueError for options out of range
// and an empty prompt.
std::vector<TokenId> generate_tokens(CausalLm& model,
                                     std::vector<TokenId> prompt,
                                     const GenerateOptions& options,
                                     TokenId end_token = -1);

// The prompt and what follows it. An empty prompt begins a document.
std::string generate(CausalLm& model, const Tokenizer& tokenizer,
                     const std::string& prompt, const GenerateOptions& options);

}  // namespace nfold::train
