#include "train/trainer.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "nfold/checkpoint.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/gather.h"
#include "nfold/init.h"
#include "nfold/report.h"
#include "nfold/sequence_parallel.h"
#include "train/files/output_file.h"
#include "train/generate.h"
#include "train/monitor/quantity.h"
#include "train/trainer_report.h"
#include "train/whole_weights.h"

namespace nfold::train {
namespace {

// Steps whose mean is the train loss that the summary shows.
constexpr std::size_t kNumRecentLosses = 20;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The memory fields as a row of numbers that a collective can carry.
constexpr std::int64_t MemoryReport::*kMemoryFields[] = {
    &MemoryReport::params_bytes,        &MemoryReport::grads_bytes,
    &MemoryReport::optimizer_bytes,     &MemoryReport::bucket_peak_bytes,
    &MemoryReport::gathered_peak_bytes, &MemoryReport::peak_rss_bytes};

// How the ranks share the work, where batches are not all there is to share.
std::string axes_text(const Mesh& mesh) {
  if (mesh.data_parallel_size() == mesh.world_size()) return {};
  return fmt::format(" ({} data x {} sequence x {} tensor)",
                     mesh.data_parallel_size(), mesh.sequence_parallel_size(),
                     mesh.tensor_parallel_size());
}

void remove_old_run(const std::filesystem::path& run_dir) {
  for (const auto& entry : std::filesystem::directory_iterator(run_dir)) {
    const std::string name = entry.path().filename().string();
    if (name == "metrics.jsonl" || name == "model.safetensors" ||
        name == "config.json" || name == "config.effective.json" ||
        name == "tokenizer.json" || name.starts_with("events.out.tfevents.") ||
        name.starts_with("trace.rank")) {
      std::filesystem::remove(entry.path());
    }
  }
}

ModelGroups model_groups(const Mesh& mesh, const Config& config) {
  ModelGroups groups{.tensor = mesh.find("tensor_parallel"),
                     .sequence = mesh.find("sequence_parallel")};
  const auto expert_size = static_cast<int>(config.expert_parallel_size);
  if (expert_size > 1) groups.expert = &mesh.expert(expert_size);
  return groups;
}

void add(const MixtureTally& tally, MixtureTally* sum) {
  if (tally.num_mixtures == 0) return;
  sum->num_mixtures += tally.num_mixtures;
  sum->num_choices += tally.num_choices;
  sum->num_dropped += tally.num_dropped;
  sum->aux_loss =
      sum->aux_loss.defined() ? sum->aux_loss + tally.aux_loss : tally.aux_loss;
}

std::string progress_text(const StepMetrics& metrics,
                          std::optional<double> val_loss) {
  std::string text = fmt::format("loss {:.4f}", metrics.loss);
  if (val_loss) text += fmt::format(" (val {:.4f})", *val_loss);
  if (metrics.mixture) {
    text +=
        fmt::format("  dropped {:.1f}%", 100 * metrics.mixture->dropped_share);
  }
  return text +
         fmt::format("  {} tokens/s", count_text(metrics.tokens_per_second));
}

}  // namespace

void check_run_dir(const std::filesystem::path& run_dir, bool is_overwriting) {
  std::error_code ignored;
  const bool is_used = std::filesystem::exists(run_dir, ignored) &&
                       (!std::filesystem::is_directory(run_dir, ignored) ||
                        !std::filesystem::is_empty(run_dir, ignored));
  TORCH_CHECK_VALUE(!is_used || is_overwriting, "--run-dir ", run_dir.string(),
                    ": holds something already, and nothing was changed. Name "
                    "another folder, or give --overwrite to lose that run.");
}

Trainer::Trainer(TrainerConfig config, const World& world,
                 std::filesystem::path run_dir)
    : config_(std::move(config)),
      world_(world),
      run_dir_(std::move(run_dir)),
      batch_(resolve_batch(
          config_.engine, data_parallel_size_of(config_.engine, world.size()))),
      data_(open_data(config_, batch_, world)),
      mesh_(world, config_.engine) {
  const auto seed = static_cast<std::uint64_t>(config_.train.seed);
  at::manual_seed(seed);
  model_ = init(mesh_, config_.engine,
                [this] {
                  return make_model(config_.model,
                                    model_groups(mesh_, config_.engine));
                },
                {.weights = config_.train.weights});
  engine_.emplace(model_, mesh_, config_.engine);
  // All ranks drew the same weights; what they drop out must differ, except
  // between ranks that compute parts of the same.
  at::manual_seed(seed + 1 +
                  static_cast<std::uint64_t>(mesh_.sequence_data().rank()));
  if (world.rank() != 0) return;
  std::filesystem::create_directories(run_dir_);
  remove_old_run(run_dir_);
  write_file_atomically(run_dir_ / "config.effective.json",
                        config_.to_json_text());
  const auto& tensorboard = config_.engine.tensorboard;
  const auto events = tensorboard.output_path.empty()
                          ? run_dir_
                          : std::filesystem::path(tensorboard.output_path) /
                                tensorboard.job_name;
  std::filesystem::create_directories(events);
  monitor_.reset(new Monitor{
      MetricsLog(run_dir_ / "metrics.jsonl"), EventWriter(events),
      ProgressBar({.label = "train", .total = config_.train.steps})});
}

Trainer::~Trainer() = default;

void Trainer::run() {
  const auto begin = Clock::now();
  for (std::int64_t step = 1; step <= config_.train.steps; ++step) {
    run_step(step);
    const auto save_interval = config_.train.save_interval;
    if (save_interval > 0 && step % save_interval == 0) save();
  }
  seconds_ = seconds_since(begin);
  if (monitor_) monitor_->progress.finish();
  // Before saving gathers the whole model: the table is about training.
  const Gathered gathered = gather(0);
  save();
  if (config_.engine.wall_clock_breakdown) {
    write_trace(
        (run_dir_ / fmt::format("trace.rank{}.json", world_.rank())).string());
  }
  print_summary(gathered);
}

void Trainer::run_step(std::int64_t step) {
  const auto begin = Clock::now();
  const Gathered gathered = gather(accumulate(step));
  StepMetrics metrics;
  metrics.step = step;
  // Before the update, so that a loss that is not finite spoils no weights.
  metrics.loss = checked_mean(gathered.values, step);
  metrics.mixture = mixture_metrics();
  metrics.report = engine_->step();
  metrics.step_ms = seconds_since(begin) * 1e3;
  metrics.samples = step * batch_.train_batch_size;
  metrics.tokens = metrics.samples * config_.data.sequence_length;
  metrics.tokens_per_second =
      static_cast<double>(batch_.train_batch_size *
                          config_.data.sequence_length) /
      (metrics.step_ms / 1e3);
  for (std::size_t i = 0; i < comm_.size(); ++i) {
    comm_[i].calls += metrics.report.comm[i].calls;
    comm_[i].bytes += metrics.report.comm[i].bytes;
  }
  recent_losses_.push_back(metrics.loss);
  if (recent_losses_.size() > kNumRecentLosses) recent_losses_.pop_front();

  const auto eval_interval = config_.train.eval_interval;
  const bool is_last = step == config_.train.steps;
  if (data_.validation.has_value() &&
      (is_last || (eval_interval > 0 && step % eval_interval == 0))) {
    val_loss_ = metrics.val_loss = validate();
  }
  if (!monitor_) return;
  metrics.report.memory = largest_of(gathered.memory);
  monitor_->metrics.write(metrics);
  write_step_events(metrics, &monitor_->events);
  monitor_->progress.update(step, progress_text(metrics, val_loss_));
}

at::Tensor Trainer::loss_of(const TokenLoader& loader, std::int64_t step,
                            std::int64_t micro_step) {
  const Rows rows =
      rows_of({.rank = mesh_.data_parallel_rank(),
               .num_ranks = mesh_.data_parallel_size(),
               .micro_batch = batch_.train_micro_batch_size_per_gpu,
               .micro_step = micro_step});
  const Batch batch = loader.next(step, rows.begin, rows.count);
  const Group* sequence = mesh_.find("sequence_parallel");
  return model_->loss(split_sequence(sequence, batch.tokens),
                      split_sequence(sequence, batch.targets));
}

double Trainer::accumulate(std::int64_t step) {
  const std::int64_t num_micro_steps = batch_.gradient_accumulation_steps;
  double sum = 0;
  mixtures_ = {};
  for (std::int64_t micro_step = 0; micro_step < num_micro_steps;
       ++micro_step) {
    const at::Tensor loss = loss_of(data_.train, step - 1, micro_step);
    sum += loss.item<double>();
    add(model_->mixtures(), &mixtures_);
    engine_->backward(loss);
    if (micro_step + 1 < num_micro_steps &&
        config_.engine.managed_gradient_accumulation) {
      engine_->step();
    }
  }
  return sum / static_cast<double>(num_micro_steps);
}

std::optional<MixtureMetrics> Trainer::mixture_metrics() const {
  if (mixtures_.num_mixtures == 0) return std::nullopt;
  at::Tensor sums = at::tensor({mixtures_.aux_loss.item<double>(),
                                static_cast<double>(mixtures_.num_mixtures),
                                static_cast<double>(mixtures_.num_dropped),
                                static_cast<double>(mixtures_.num_choices)},
                               at::kDouble);
  // Over the world's group, see gather().
  all_reduce(world_.group(), sums).wait();
  const double* of_all = sums.const_data_ptr<double>();
  return MixtureMetrics{.aux_loss = of_all[0] / of_all[1],
                        .dropped_share = of_all[2] / of_all[3]};
}

double Trainer::validate() {
  at::NoGradGuard no_grad;
  model_->eval();
  const TokenLoader& loader = *data_.validation;
  const std::int64_t num_batches =
      std::min(config_.train.eval_batches, loader.num_batches());
  double sum = 0;
  for (std::int64_t i = 0; i < num_batches; ++i) {
    sum += loss_of(loader, i, 0).item<double>();
  }
  model_->train();
  const auto values = gather(sum / static_cast<double>(num_batches)).values;
  return std::accumulate(values.begin(), values.end(), 0.0) /
         static_cast<double>(values.size());
}

Trainer::Gathered Trainer::gather(double value) const {
  constexpr std::int64_t kWidth = 1 + std::size(kMemoryFields);
  const MemoryReport memory = engine_->memory();
  // Over the world's group, so that the counters of the data-parallel group
  // hold the training's bytes only. Whole numbers up to 2^53 are exact.
  at::Tensor rows = at::zeros({world_.size() * kWidth}, at::kDouble);
  at::Tensor row =
      rows.slice(0, world_.rank() * kWidth, (world_.rank() + 1) * kWidth);
  row[0] = value;
  for (std::int64_t i = 1; i < kWidth; ++i) {
    row[i] = static_cast<double>(memory.*kMemoryFields[i - 1]);
  }
  all_gather(world_.group(), rows, row).wait();
  const double* numbers = rows.const_data_ptr<double>();
  Gathered result;
  for (int rank = 0; rank < world_.size(); ++rank, numbers += kWidth) {
    result.values.push_back(numbers[0]);
    MemoryReport& report = result.memory.emplace_back();
    for (std::int64_t i = 1; i < kWidth; ++i) {
      report.*kMemoryFields[i - 1] = static_cast<std::int64_t>(numbers[i]);
    }
  }
  return result;
}

double Trainer::checked_mean(const std::vector<double>& losses,
                             std::int64_t step) const {
  for (std::size_t rank = 0; rank < losses.size(); ++rank) {
    TORCH_CHECK_VALUE(
        std::isfinite(losses[rank]), "[rank ", rank, "] step ", step,
        ": the loss is ", losses[rank],
        "; expected a finite number. The weights are those before this step. "
        "Lower the learning rate (engine.optimizer.params.lr), warm it up "
        "(engine.scheduler) or clip the gradients "
        "(engine.gradient_clipping).");
  }
  return std::accumulate(losses.begin(), losses.end(), 0.0) /
         static_cast<double>(losses.size());
}

void Trainer::save() const {
  if (!config_.train.is_saving) return;
  // The file holds whole weights, which all ranks gather together.
  const GatheredParameters scope(model_->parameters());
  const NamedTensors weights =
      whole_weights(*model_, model_groups(mesh_, config_.engine));
  if (!monitor_) return;
  save_safetensors((run_dir_ / "model.safetensors").string(), weights,
                   {{"format", "pt"}});
  write_file_atomically(run_dir_ / "config.json",
                        config_.model.to_json_text() + "\n");
  if (data_.tokenizer.has_value()) {
    write_file_atomically(run_dir_ / "tokenizer.json",
                          data_.tokenizer->to_json());
  }
}

std::string Trainer::sample() {
  if (!data_.tokenizer.has_value() || config_.train.sample_tokens == 0) {
    return {};
  }
  GenerateOptions options;
  options.max_tokens = config_.train.sample_tokens;
  options.seed = static_cast<std::uint64_t>(config_.train.seed);
  options.max_positions = config_.model.max_positions;
  return generate(*model_, *data_.tokenizer, config_.train.sample_prompt,
                  options);
}

void Trainer::print_summary(const Gathered& gathered) {
  // On every rank: sharded parameters are gathered by all of them together.
  const std::string text = sample();
  if (!monitor_) return;
  const double train_loss =
      std::accumulate(recent_losses_.begin(), recent_losses_.end(), 0.0) /
      static_cast<double>(recent_losses_.size());
  const double num_tokens =
      static_cast<double>(config_.train.steps * batch_.train_batch_size *
                          config_.data.sequence_length);
  fmt::print("\ntrain loss       {:.4f}  (mean of the last {} steps)\n",
             train_loss, recent_losses_.size());
  if (val_loss_.has_value()) {
    fmt::print("validation loss  {:.4f}\n", *val_loss_);
  }
  fmt::print("{} steps, {} tokens in {}, {} tokens/s, {} ranks{}, stage {}\n\n",
             config_.train.steps, count_text(num_tokens),
             duration_text(seconds_), count_text(num_tokens / seconds_),
             world_.size(), axes_text(mesh_),
             config_.engine.zero_optimization.stage);
  // The engine knows this rank's part of split layers only.
  fmt::print("{}\n",
             memory_table(gathered.memory, engine_->unsharded_memory(),
                          mesh_.tensor_parallel_size() > 1 ? "part, unsharded"
                                                           : "one process"));
  fmt::print("{}\n", comm_table(comm_, config_.train.steps));
  if (!text.empty()) fmt::print("--- sample ---\n{}\n--------------\n", text);
  fmt::print("run directory: {}\n", run_dir_.string());
  std::fflush(stdout);
}

}  // namespace nfold::train
