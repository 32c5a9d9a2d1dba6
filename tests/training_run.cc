#include "training_run.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <mutex>

namespace nfold::testing {
namespace {

// torch's default generator is shared by all threads.
std::mutex& seed_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::pair<at::Tensor, at::Tensor> batch_of(std::int64_t step,
                                           std::int64_t first_row,
                                           std::int64_t num_rows) {
  std::vector<at::Tensor> rows;
  for (std::int64_t row = first_row; row < first_row + num_rows; ++row) {
    rows.push_back(hard_tokens(step, row, kLength + 1));
  }
  const auto tokens = torch::cat(rows);
  return {tokens.narrow(1, 0, kLength), tokens.narrow(1, 1, kLength)};
}

double mean_over_ranks(World& world, double value) {
  auto sum = torch::full({1}, value, at::kDouble);
  all_reduce(world.group(), sum).wait();
  return sum.item<double>() / world.size();
}

template <typename Make>
auto seeded(const Make& make) {
  const std::lock_guard lock(seed_mutex());
  torch::manual_seed(1234);
  return make();
}

// 0 and -0 differ, NaN equals itself.
bool same_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         torch::equal(a.contiguous().view({-1}).view(at::kByte),
                      b.contiguous().view({-1}).view(at::kByte));
}

// What differs first, or "".
std::string difference(const char* what, const std::vector<double>& a,
                       const std::vector<double>& b) {
  if (a.size() != b.size()) return "the runs have different lengths";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (same_bits(a[i], b[i])) continue;
    return std::string(what) + " " + std::to_string(i) + ": " +
           std::to_string(a[i]) + " and " + std::to_string(b[i]);
  }
  return "";
}

double relative_distance(const std::vector<double>& a,
                         const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::abs(a.at(i) - b[i]) / std::abs(b[i]));
  }
  return largest;
}

}  // namespace

TrainedModel hard_model_to_train() {
  const auto model = HardModel().ptr();
  return {model, [model](const at::Tensor& tokens, const at::Tensor& targets,
                         std::int64_t step) {
            return model->forward(tokens, targets, step % 2 == 0);
          }};
}

Config config_of(const RunSettings& settings) {
  const std::string text =
      R"({"train_batch_size": )" + std::to_string(settings.global_rows) +
      R"(, "gradient_accumulation_steps": )" +
      std::to_string(settings.accumulation_steps) + R"(, "optimizer": )" +
      settings.optimizer + R"(, "zero_optimization": {"stage": )" +
      std::to_string(settings.stage) + R"(, "overlap_comm": )" +
      (settings.overlaps ? "true" : "false") + R"(, "reduce_bucket_size": )" +
      std::to_string(settings.bucket_numel) + settings.more_zero + "}" +
      settings.more + "}";
  return Config::from_json_text(text);
}

RunResult run_rank(World& world, const RunSettings& settings) {
  const auto config = config_of(settings);
  Mesh mesh(world, config);
  const auto model = seeded(settings.make_model);
  Engine engine(model.module, mesh, config);

  RunResult result;
  const auto rows =
      settings.global_rows / world.size() / settings.accumulation_steps;
  for (std::int64_t step = 0; step < settings.num_steps; ++step) {
    double sum = 0;
    for (int micro = 0; micro < settings.accumulation_steps; ++micro) {
      const auto first_row = (micro * world.size() + world.rank()) * rows;
      const auto [tokens, targets] = batch_of(step, first_row, rows);
      const auto loss = model.loss(tokens, targets, step);
      engine.backward(loss);
      result.losses.push_back(loss.item<double>());
      sum += result.losses.back();
      const auto report = engine.step();
      if (!report.is_boundary) continue;
      result.grad_norms.push_back(report.grad_norm);
      result.skipped.push_back(report.is_skipped);
      result.last_report = report;
    }
    result.mean_losses.push_back(
        mean_over_ranks(world, sum / settings.accumulation_steps));
  }
  for (const auto& item : model.module->named_parameters()) {
    result.params.push_back(safe_get_full_fp32_param(engine, item.value()));
    result.module_params.push_back(item.value().detach().clone());
  }
  return result;
}

RunResult run_sharded(const RunSettings& settings) {
  std::vector<RunResult> results(static_cast<std::size_t>(settings.num_ranks));
  run_ranks(settings.num_ranks,
            [&](World& world) {
              results[static_cast<std::size_t>(world.rank())] =
                  run_rank(world, settings);
            },
            {.transport = settings.transport});
  // All ranks must hold the same parameters, as the module sees them too.
  for (const auto& result : results) {
    for (std::size_t i = 0; i < result.params.size(); ++i) {
      TORCH_CHECK(
          same_bits(result.params[i], results[0].params[i]) &&
              same_bits(result.module_params[i], results[0].module_params[i]),
          name_of(settings), ": parameter ", i, " differs between ranks");
    }
  }
  return results[0];
}

RunResult run_plain(const RunSettings& settings, bool uses_sgd) {
  auto model = seeded([] { return HardModel(/*ties_by_storage=*/false); });
  std::vector<at::Tensor> trained;
  for (const auto& param : model->parameters()) {
    if (!param.requires_grad()) continue;
    bool is_new = true;
    for (const auto& other : trained) is_new = is_new && !other.is_same(param);
    if (is_new) trained.push_back(param);
  }
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  if (uses_sgd) {
    optimizer = std::make_unique<torch::optim::SGD>(
        trained, torch::optim::SGDOptions(0.05).momentum(0.9));
  } else {
    optimizer = std::make_unique<torch::optim::AdamW>(
        trained, torch::optim::AdamWOptions(0.01).weight_decay(0.1));
  }
  RunResult result;
  for (std::int64_t step = 0; step < settings.num_steps; ++step) {
    const auto [tokens, targets] = batch_of(step, 0, settings.global_rows);
    const auto loss = model->forward(tokens, targets, step % 2 == 0);
    optimizer->zero_grad();
    loss.backward();
    // nfold trains what a step did not use with a zero gradient.
    for (auto& param : trained) {
      if (!param.grad().defined()) {
        param.mutable_grad() = torch::zeros_like(param);
      }
    }
    result.grad_norms.push_back(
        torch::nn::utils::clip_grad_norm_(trained, 1.0));
    optimizer->step();
    result.mean_losses.push_back(loss.item<double>());
  }
  for (const auto& item : model->named_parameters()) {
    result.params.push_back(item.value().detach().clone());
  }
  return result;
}

std::string difference(const RunResult& a, const RunResult& b) {
  for (const auto& text :
       {difference("loss of micro step", a.losses, b.losses),
        difference("mean loss of step", a.mean_losses, b.mean_losses),
        difference("gradient norm of step", a.grad_norms, b.grad_norms)}) {
    if (!text.empty()) return text;
  }
  if (a.params.size() != b.params.size()) return "the models differ";
  for (std::size_t i = 0; i < a.params.size(); ++i) {
    if (!same_bits(a.params[i], b.params[i])) {
      return "parameter " + std::to_string(i);
    }
  }
  return "";
}

double relative_difference(const RunResult& a, const RunResult& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.params.size(); ++i) {
    const auto scale = b.params[i].abs().max().item<double>();
    const auto distance =
        (a.params[i] - b.params[i]).abs().max().item<double>();
    largest = std::max(largest, distance / (scale + 1e-12));
  }
  return largest;
}

double relative_curve_difference(const RunResult& a, const RunResult& b) {
  return std::max(relative_distance(a.mean_losses, b.mean_losses),
                  relative_distance(a.grad_norms, b.grad_norms));
}

}  // namespace nfold::testing
