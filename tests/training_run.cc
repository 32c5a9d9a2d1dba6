#include "training_run.h"

#include <cmath>
#include <mutex>

#include "testing/thread_world.h"

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

}  // namespace

HardModel make_hard_model(bool ties_by_storage) {
  const std::lock_guard lock(seed_mutex());
  torch::manual_seed(1234);
  return HardModel(ties_by_storage);
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
  auto model = make_hard_model();
  Engine engine(model, mesh, config);

  RunResult result;
  const auto rows =
      settings.global_rows / world.size() / settings.accumulation_steps;
  for (std::int64_t step = 0; step < settings.num_steps; ++step) {
    double sum = 0;
    for (int micro = 0; micro < settings.accumulation_steps; ++micro) {
      const auto first_row = (micro * world.size() + world.rank()) * rows;
      const auto [tokens, targets] = batch_of(step, first_row, rows);
      const auto loss = model->forward(tokens, targets, step % 2 == 0);
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
  for (const auto& item : model->named_parameters()) {
    result.params.push_back(safe_get_full_fp32_param(engine, item.value()));
    result.module_params.push_back(item.value().detach().clone());
  }
  return result;
}

RunResult run_sharded(const RunSettings& settings) {
  std::vector<RunResult> results(static_cast<std::size_t>(settings.num_ranks));
  run_ranks(settings.num_ranks, [&](World& world) {
    results[static_cast<std::size_t>(world.rank())] = run_rank(world, settings);
  });
  // All ranks must hold the same parameters, as the module sees them too.
  for (const auto& result : results) {
    for (std::size_t i = 0; i < result.params.size(); ++i) {
      TORCH_CHECK(torch::equal(result.params[i], results[0].params[i]) &&
                      torch::equal(result.module_params[i],
                                   results[0].module_params[i]),
                  name_of(settings), ": parameter ", i,
                  " differs between ranks");
    }
  }
  return results[0];
}

RunResult run_plain(const RunSettings& settings, bool uses_sgd) {
  auto model = make_hard_model(/*ties_by_storage=*/false);
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
  for (std::size_t i = 0; i < a.losses.size(); ++i) {
    if (a.losses[i] != b.losses[i]) {
      return "loss of micro step " + std::to_string(i) + ": " +
             std::to_string(a.losses[i]) + " and " +
             std::to_string(b.losses[i]);
    }
  }
  for (std::size_t i = 0; i < a.grad_norms.size(); ++i) {
    if (a.grad_norms[i] != b.grad_norms[i]) {
      return "gradient norm of step " + std::to_string(i) + ": " +
             std::to_string(a.grad_norms[i]) + " and " +
             std::to_string(b.grad_norms[i]);
    }
  }
  for (std::size_t i = 0; i < a.params.size(); ++i) {
    if (!torch::equal(a.params[i], b.params[i])) {
      return "parameter " + std::to_string(i);
    }
  }
  return a.losses.size() == b.losses.size() &&
                 a.params.size() == b.params.size()
             ? ""
             : "the runs have different lengths";
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

}  // namespace nfold::testing
