#include "train/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

// Runs a module as in use rather than in training, and puts it back.
class EvalScope {
 public:
  explicit EvalScope(torch::nn::Module& module)
      : module_(module), was_training_(module.is_training()) {
    module_.eval();
  }
  ~EvalScope() { module_.train(was_training_); }
  EvalScope(const EvalScope&) = delete;
  EvalScope& operator=(const EvalScope&) = delete;

 private:
  torch::nn::Module& module_;
  const bool was_training_;
};

TokenId draw(at::Tensor logits, const GenerateOptions& options,
             at::Generator& generator) {
  if (options.temperature == 0) {
    return static_cast<TokenId>(logits.argmax().item<std::int64_t>());
  }
  logits = logits / options.temperature;
  if (options.top_k == 0 || options.top_k >= logits.size(0)) {
    return static_cast<TokenId>(
        at::multinomial(logits.softmax(0), 1, false, generator)
            .item<std::int64_t>());
  }
  const auto [values, indices] = logits.topk(options.top_k);
  const auto choice = at::multinomial(values.softmax(0), 1, false, generator);
  return static_cast<TokenId>(
      indices.index_select(0, choice).item<std::int64_t>());
}

}  // namespace

std::vector<TokenId> generate_tokens(CausalLm& model,
                                     std::vector<TokenId> prompt,
                                     const GenerateOptions& options,
                                     TokenId end_token) {
  TORCH_CHECK_VALUE(!prompt.empty(),
                    "generate: the prompt has no token to begin with.");
  TORCH_CHECK_VALUE(options.max_tokens >= 0,
                    "max-tokens: expected 0 or more, found ",
                    options.max_tokens, ".");
  TORCH_CHECK_VALUE(options.temperature >= 0,
                    "temperature: expected 0 or more, found ",
                    options.temperature, ".");
  TORCH_CHECK_VALUE(options.top_k >= 0, "top-k: expected 0 or more, found ",
                    options.top_k, ".");
  TORCH_CHECK_VALUE(options.max_positions >= 1,
                    "generate: max_positions must be those of the model.");
  at::NoGradGuard no_grad;
  EvalScope eval_scope(model);
  // Its own generator: a sample must not change the training that follows.
  at::Generator generator = at::detail::createCPUGenerator(options.seed);
  std::vector<std::int64_t> tokens(prompt.begin(), prompt.end());
  std::vector<TokenId> result;
  for (std::int64_t i = 0; i < options.max_tokens; ++i) {
    const auto length = std::min<std::int64_t>(
        static_cast<std::int64_t>(tokens.size()), options.max_positions);
    const auto context =
        at::from_blob(tokens.data() + (tokens.size() - length), {1, length},
                      at::TensorOptions(at::kLong));
    auto logits = model.next_logits(context)[0].to(at::kFloat);
    if (options.num_tokens > 0) {
      logits = logits.slice(0, 0, options.num_tokens);
    }
    const TokenId token = draw(logits, options, generator);
    if (token == end_token) break;
    result.push_back(token);
    tokens.push_back(token);
  }
  return result;
}

std::string generate(CausalLm& model, const Tokenizer& tokenizer,
                     const std::string& prompt,
                     const GenerateOptions& options) {
  std::vector<TokenId> tokens = tokenizer.encode(prompt);
  const auto end_of_text = tokenizer.end_of_text();
  if (tokens.empty()) {
    TORCH_CHECK_VALUE(end_of_text.has_value(),
                      "generate: the prompt is empty and the tokenizer has no ",
                      kEndOfText, " to begin with; give a prompt.");
    tokens.push_back(*end_of_text);
  }
  auto limited = options;
  limited.num_tokens = tokenizer.vocab_size();
  const auto generated =
      generate_tokens(model, tokens, limited, end_of_text.value_or(-1));
  return prompt + tokenizer.decode(generated);
}

}  // namespace nfold::train
