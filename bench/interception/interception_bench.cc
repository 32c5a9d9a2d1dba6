// What it costs that every operator with a sharded parameter passes through
// nfold: models whose parameters are marked, but whole all the time, against
// the same models in plain libtorch, turn by turn.
//
//   make bench-interception
//   nfold_interception_bench [gpt] [tiny] [calls]    only these
//
// Prints, for each case, the median time of both, the median and the range of
// the ratios of neighbouring measurements, and what one intercepted operator
// costs.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "engine/sharding_plan.h"
#include "fetch/dispatch_interceptor.h"
#include "fetch/fetcher.h"
#include "nfold/world.h"
#include "train/models/causal_lm.h"

namespace nfold {
namespace {

using Clock = std::chrono::steady_clock;

// Counts what the interceptor tells of, and passes it on.
class CountingHandler : public AccessHandler {
 public:
  explicit CountingHandler(AccessHandler& handler) : handler_(handler) {}
  void begin_access(UnitRefs units) override {
    ++num_calls_;
    handler_.begin_access(units);
  }
  void end_access(UnitRefs units) noexcept override {
    handler_.end_access(units);
  }
  void discard(UnitRefs units) override { handler_.discard(units); }
  std::string where() const override { return handler_.where(); }
  Group& group() const override { return handler_.group(); }

  std::int64_t num_calls() const { return num_calls_; }

 private:
  AccessHandler& handler_;
  std::int64_t num_calls_ = 0;
};

// Shards a module over one rank, so that its parameters are marked, and never
// releases what was used once.
class Marked {
 public:
  Marked(const torch::nn::Module& module, World& world) {
    const auto config = Config::from_json_text(
        R"({"train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3}})");
    const auto params = collect_params(module);
    for (auto& planned :
         plan_sharding(params, config, stage_policy(config), 0, 1)) {
      planned.options.is_resident = false;
      std::vector<ParamState> members;
      for (const auto index : planned.params) members.push_back(params[index]);
      units_.push_back(
          std::make_unique<ShardedUnit>(std::move(members), planned.options));
    }
    std::vector<ShardedUnit*> units;
    for (const auto& unit : units_) units.push_back(unit.get());
    FetcherOptions options;
    options.plan.max_live_numel = std::int64_t{1} << 40;
    options.plan.max_reuse_numel = std::int64_t{1} << 40;
    fetcher_ = std::make_unique<Fetcher>(world.group(), units, options,
                                         dispatch_interceptor());
  }

  // Of one call of `run`.
  template <typename Run>
  std::int64_t accesses_of(const Run& run) {
    CountingHandler counter(*fetcher_);
    for (const auto& unit : units_) {
      dispatch_interceptor().watch(*unit, counter);
    }
    run();
    for (const auto& unit : units_) {
      dispatch_interceptor().watch(*unit, *fetcher_);
    }
    return counter.num_calls();
  }

 private:
  std::vector<std::unique_ptr<ShardedUnit>> units_;
  std::unique_ptr<Fetcher> fetcher_;
};

struct SmallGpt {
  static constexpr const char* kName = "small GPT, forward and backward";
  static constexpr int kRepeats = 1;
  SmallGpt() {
    train::ModelConfig config;
    config.vocab_size = 8192;
    config.num_layers = 6;
    config.hidden_size = 384;
    config.num_heads = 6;
    config.num_kv_heads = 6;
    config.head_dim = 64;
    config.intermediate_size = 4 * 384;
    config.max_positions = 256;
    torch::manual_seed(1);
    model = train::make_model(config);
    tokens = torch::randint(8192, {4, 256});
  }
  void run() { model->loss(tokens, tokens).backward(); }
  const torch::nn::Module& module() const { return *model; }

  std::shared_ptr<train::CausalLm> model;
  at::Tensor tokens;
};

// Chains of operators that do next to nothing, each with a parameter.
struct TinyImpl : torch::nn::Module {
  TinyImpl() {
    for (int i = 0; i < 16; ++i) {
      weights.push_back(
          register_parameter(fmt::format("w{}", i), torch::ones({64})));
    }
  }
  std::vector<at::Tensor> weights;
};

struct TinyOperators {
  static constexpr const char* kName = "4,000 tiny operators and backward";
  static constexpr int kRepeats = 1;
  void run() {
    auto x = torch::ones({64});
    for (int i = 0; i < 4000; ++i) {
      x = x * model->weights[static_cast<std::size_t>(i % 16)];
    }
    x.sum().backward();
  }
  const torch::nn::Module& module() const { return *model; }

  std::shared_ptr<TinyImpl> model = std::make_shared<TinyImpl>();
};

struct BareCalls {
  static constexpr const char* kName = "20,000 additions without autograd";
  static constexpr int kRepeats = 1;
  void run() {
    torch::NoGradGuard no_grad;
    for (int i = 0; i < 20'000; ++i) {
      model->weights[static_cast<std::size_t>(i % 16)].add(ones);
    }
  }
  const torch::nn::Module& module() const { return *model; }

  std::shared_ptr<TinyImpl> model = std::make_shared<TinyImpl>();
  at::Tensor ones = torch::ones({64});
};

template <typename Case>
double seconds_of(Case& subject) {
  const auto begin = Clock::now();
  for (int i = 0; i < Case::kRepeats; ++i) subject.run();
  const std::chrono::duration<double> time = Clock::now() - begin;
  return time.count() / Case::kRepeats;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle]
                                : (values[middle - 1] + values[middle]) / 2;
}

template <typename Case>
void measure(World& world, int num_rounds) {
  Case plain;
  Case marked;
  Marked marking(marked.module(), world);
  const auto num_calls = marking.accesses_of([&] { marked.run(); });
  for (int i = 0; i < 3; ++i) {
    plain.run();
    marked.run();
  }
  std::vector<double> plain_seconds;
  std::vector<double> marked_seconds;
  std::vector<double> ratios;
  for (int round = 0; round < num_rounds; ++round) {
    // Whoever comes second profits from a warm cache.
    const bool is_plain_first = round % 2 == 0;
    const double first =
        is_plain_first ? seconds_of(plain) : seconds_of(marked);
    const double second =
        is_plain_first ? seconds_of(marked) : seconds_of(plain);
    plain_seconds.push_back(is_plain_first ? first : second);
    marked_seconds.push_back(is_plain_first ? second : first);
    ratios.push_back(marked_seconds.back() / plain_seconds.back());
  }
  std::vector<double> differences;
  for (std::size_t i = 0; i < plain_seconds.size(); ++i) {
    differences.push_back(marked_seconds[i] - plain_seconds[i]);
  }
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  fmt::print(
      "{:<36} {:>10.3f} {:>10.3f}  {:.3f} ({:.3f} to {:.3f}) {:>9} {:>7.3f}\n",
      Case::kName, median(plain_seconds) * 1e3, median(marked_seconds) * 1e3,
      median(ratios), *least, *most, num_calls,
      median(differences) / static_cast<double>(num_calls) * 1e6);
  std::fflush(stdout);
}

}  // namespace
}  // namespace nfold

int main(int argc, char** argv) {
  const std::vector<std::string> chosen(argv + 1, argv + argc);
  const auto is_chosen = [&](const char* name) {
    return chosen.empty() ||
           std::find(chosen.begin(), chosen.end(), name) != chosen.end();
  };
  at::set_num_threads(1);
  auto world = nfold::World::from_environment();
  fmt::print("{:<36} {:>10} {:>10}  {:<22} {:>9} {:>7}\n", "", "plain ms",
             "marked ms", "ratio (range)", "calls", "us each");
  if (is_chosen("gpt")) nfold::measure<nfold::SmallGpt>(world, 21);
  if (is_chosen("tiny")) nfold::measure<nfold::TinyOperators>(world, 201);
  if (is_chosen("calls")) nfold::measure<nfold::BareCalls>(world, 201);
}
