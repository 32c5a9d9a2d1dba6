#include "nfold/engine.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include <cmath>

#include "base/log.h"
#include "base/process_memory.h"
#include "base/profile.h"
#include "comm/gather_table.h"
#include "comm/group_impl.h"
#include "engine/engine_impl.h"
#include "engine/initialized_modules.h"
#include "engine/optimizer_setup.h"
#include "engine/reduction_setup.h"
#include "fetch/dispatch_interceptor.h"
#include "nfold/clip.h"
#include "nfold/collectives.h"
#include "nfold/host_memory.h"
#include "optim/grad_norm.h"
#include "param/deferred_construction.h"

namespace nfold {
namespace {

// Units updated by the optimizer travel in pieces of at least this many
// elements, so that the first are under way while the last are updated.
constexpr std::int64_t kGatherNumel = std::int64_t{1} << 22;

double ms_between(std::chrono::steady_clock::time_point begin,
                  std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

std::string text_of(const std::vector<std::int64_t>& sizes) {
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

// Checks the configuration and does what it asks of the process.
Config prepared(const Config& config) {
  config.validate();
  if (config.cache_host_memory) enable_host_cache();
  return config;
}

// What nfold::init left of the module, or the module sharded now.
ShardedModel sharded(const std::shared_ptr<torch::nn::Module>& module,
                     Mesh& mesh, const Config& config) {
  auto initialized = take_initialized(module, mesh, config);
  return initialized ? std::move(*initialized)
                     : ShardedModel(*module, mesh, config);
}

FetcherOptions fetcher_options(const Config& config) {
  const auto& zero = config.zero_optimization;
  FetcherOptions options;
  options.plan.max_live_numel = zero.stage3_max_live_parameters;
  options.plan.prefetch_numel = zero.stage3_prefetch_bucket_size;
  options.plan.max_reuse_numel = zero.stage3_max_reuse_distance;
  options.is_sequential = zero.stage3_allgather_sequential;
  options.logs_changes = zero.log_trace_cache_warnings;
  options.gather_mode = zero.stage3_use_all_reduce_for_fetch_params
                            ? GatherMode::kAllReduce
                            : GatherMode::kAllGather;
  return options;
}

}  // namespace

Engine::Impl::Impl(std::shared_ptr<torch::nn::Module> module, Mesh& mesh,
                   const Config& config, EngineOptions options)
    : module_(std::move(module)),
      mesh_(mesh),
      group_(mesh.state_group()),
      config_(prepared(config)),
      policy_(stage_policy(config_)),
      model_(sharded(module_, mesh, config_)),
      fetcher_(group_, model_.all(), fetcher_options(config_),
               dispatch_interceptor()),
      reducer_(group_, model_.trained(),
               reducer_options(config_, policy_, model_.trained(), mesh)),
      optimizer_(make_engine_optimizer(model_, config_, options)),
      scaler_(make_loss_scaler(config_)),
      sum_scale_(scales_of(config_, mesh.data_parallel_size()).in_optimizer) {
  if (config_.managed_gradient_accumulation) {
    accumulation_steps_ =
        config_.train_batch_size || config_.train_micro_batch_size_per_gpu
            ? resolve_batch(config_, mesh.data_parallel_size())
                  .gradient_accumulation_steps
            : config_.gradient_accumulation_steps.value_or(1);
  }
  if (optimizer_ && config_.scheduler) {
    schedule_.emplace(make_lr_schedule(*config_.scheduler, *optimizer_));
    schedule_->apply(0, optimizer_->groups());
  }
  tell_position();
  if (config_.wall_clock_breakdown) start_profile();
  comm_at_last_step_ = comm_counts();
}

void Engine::Impl::check_not_spent(const char* operation) const {
  TORCH_CHECK_VALUE(!is_spent_, where(), ": ", operation,
                    " after unshard_model; make a new engine to go on");
}

void Engine::Impl::check_loss(const at::Tensor& loss) const {
  TORCH_CHECK_VALUE(
      loss.defined() && loss.numel() == 1, where(),
      ": backward expected a loss of one element but found ",
      loss.defined() ? fmt::format("shape [{}]", fmt::join(loss.sizes(), ", "))
                     : std::string("an undefined tensor"),
      "; reduce it with mean() or sum()");
  TORCH_CHECK_VALUE(loss.requires_grad(), where(),
                    ": the loss does not depend on any trainable parameter, "
                    "or was computed under NoGradGuard");
}

std::string Engine::Impl::position() const {
  return fmt::format("step {}, micro step {}", steps_ + 1, micro_steps_);
}

void Engine::Impl::tell_position(const std::string& more) {
  fetcher_.set_position(position() + more);
  for (auto* group : mesh_.groups()) {
    group->impl().set_label(position() + more);
  }
}

std::string Engine::Impl::where() const {
  return fmt::format("[rank {}] {}", mesh_.rank(), position());
}

bool Engine::Impl::is_boundary() const {
  return micro_steps_ > 0 && micro_steps_ % accumulation_steps_ == 0;
}

void Engine::Impl::run_backward(const at::Tensor& loss,
                                const at::Tensor& seed) {
  try {
    loss.backward(seed);
  } catch (const c10::Error& error) {
    // torch knows the tensor's shape only.
    const std::string text = error.what_without_backtrace();
    const bool is_stale =
        text.find("modified by an inplace operation") != std::string::npos;
    if (!is_stale) throw;
    std::string names;
    for (const auto* unit : model_.all()) {
      for (const auto& param : unit->params()) {
        // Backward may need the transpose.
        auto sizes = param.tensor().sizes().vec();
        const bool is_of_shape = text.find(text_of(sizes)) != text.npos;
        std::reverse(sizes.begin(), sizes.end());
        if (is_of_shape || text.find(text_of(sizes)) != text.npos) {
          names += "\n  " + param.name;
        }
      }
    }
    TORCH_CHECK_VALUE(false, where(),
                      ": this loss was computed before a step or a gather "
                      "scope changed the parameters that backward needs. "
                      "Run forward again. Of that shape are:",
                      names, "\n", text);
  }
}

void Engine::Impl::backward(const at::Tensor& loss) {
  check_not_spent("backward");
  check_loss(loss);
  fetcher_.verify();
  const ProfileRange range("nfold::backward");
  const auto start = Clock::now();
  timers_.forward_ms += ms_between(timers_.last_end, start);
  const auto scale_before = std::exchange(backward_scale_, scaler_.scale());
  if (backward_scale_ != scale_before) {
    reducer_.scale_feedback(backward_scale_ / scale_before);
  }
  const auto waited = reducer_.wait_time();
  leave_grads_to_one_replica();
  reducer_.begin(position());
  try {
    const auto seed = at::full_like(
        loss, backward_scale_ / static_cast<double>(accumulation_steps_));
    tell_position(", backward");
    {
      const Fetcher::BackwardScope scope(fetcher_);
      run_backward(loss, seed);
    }
    ++micro_steps_;
    // Buckets under way keep their labels.
    fetcher_.set_position(position());
    reducer_.finish(is_boundary() || !config_.managed_gradient_accumulation);
    tell_position();
  } catch (...) {
    // What some buckets hold is no gradient of anything.
    zero_grad();
    throw;
  }
  grads_bytes_ = std::max(grads_bytes_, held_grads_bytes());
  timers_.last_end = Clock::now();
  timers_.backward_ms += ms_between(start, timers_.last_end);
  timers_.comm_wait_ms +=
      std::chrono::duration<double, std::milli>(reducer_.wait_time() - waited)
          .count();
}

void Engine::Impl::reduce_over_replicas() {
  if (!mesh_.replica_group() || is_reduced_over_replicas_) return;
  const ProfileRange range("nfold::reduce_over_replicas");
  const auto start = Clock::now();
  std::vector<Pending> pendings;
  for (auto* unit : model_.trained()) {
    auto* replicas = unit->options().groups.replica;
    if (!replicas) continue;
    replicas->impl().set_label(fmt::format("{}, gradients of {} over replicas",
                                           position(), unit->name()));
    pendings.push_back(all_reduce(*replicas, unit->grad()));
  }
  for (auto& pending : pendings) pending.wait();
  is_reduced_over_replicas_ = true;
  timers_.comm_wait_ms += ms_between(start, Clock::now());
}

// The sum over replicas is about to be added to, and will be taken again.
void Engine::Impl::leave_grads_to_one_replica() {
  if (!is_reduced_over_replicas_) return;
  is_reduced_over_replicas_ = false;
  for (auto* unit : model_.trained()) {
    const auto* replicas = unit->options().groups.replica;
    if (replicas && replicas->rank() > 0) unit->clear_grad();
  }
}

void Engine::Impl::zero_grad() {
  is_reduced_over_replicas_ = false;
  reducer_.reset();
  micro_steps_ = 0;
}

bool Engine::Impl::measure_gradients(StepReport& report) {
  // A dynamic loss scale needs to know of overflows in any case.
  if (!config_.zero_optimization.compute_grad_norm && !scaler_.is_dynamic()) {
    return true;
  }
  const ProfileRange range("nfold::grad_norm");
  announce("gradient norm");
  const double scaled_norm = global_grad_norm(model_.trained());
  const bool is_finite = std::isfinite(scaled_norm);
  report.grad_norm = scaled_norm * grad_scale();
  if (!is_finite) report.non_finite = describe_non_finite();
  return is_finite;
}

std::string Engine::Impl::describe_non_finite() {
  constexpr std::int64_t kMaxLength = 256;
  std::string text;
  if (const auto& found = reducer_.non_finite()) {
    const auto& unit = *model_.trained()[found->unit];
    text = fmt::format("rank {} {}[{}] = {}", mesh_.rank(),
                       unit.params()[found->param].name, found->element,
                       found->value);
  }
  // Of the first rank that found one. Ranks that hold other parts of layers
  // have not taken part in this rank's sums.
  for (auto* group : {&group_, mesh_.find("tensor_parallel")}) {
    if (!group) continue;
    const auto texts = gather_texts(*group, text, kMaxLength);
    const auto found =
        std::find_if(texts.begin(), texts.end(),
                     [](const std::string& each) { return !each.empty(); });
    text = found == texts.end() ? "" : *found;
  }
  return text.empty() ? "no single gradient: the sum over ranks and micro "
                        "steps overflowed"
                      : text;
}

void Engine::Impl::announce(const std::string& what) {
  const auto label = position() + ", " + what;
  for (const auto* unit : model_.trained()) {
    unit->options().groups.shard->impl().set_label(label);
  }
}

void Engine::Impl::update(double grad_scale) {
  const ProfileRange range("nfold::optimizer_step");
  announce("updated parameters");
  const auto threshold =
      std::min(kGatherNumel, config_.zero_optimization.allgather_bucket_size);
  std::vector<ShardedUnit*> waiting;
  std::int64_t numel = 0;
  for (auto* unit : model_.trained()) unit->begin_update();
  optimizer_->step(static_cast<float>(grad_scale), [&](std::size_t index) {
    auto* unit = model_.trained()[index];
    unit->publish_shard();
    if (!unit->options().is_resident) return;  // gathered when it is used
    waiting.push_back(unit);
    numel += unit->layout().numel();
    if (numel < threshold) return;
    ShardedUnit::begin_gather(std::exchange(waiting, {}));
    numel = 0;
  });
  ShardedUnit::begin_gather(waiting);
  const auto start = Clock::now();
  for (auto* unit : model_.trained()) {
    if (unit->options().is_resident) unit->finish_gather();
  }
  timers_.comm_wait_ms += ms_between(start, Clock::now());
}

void Engine::Impl::begin_update(ShardedUnit& unit) {
  fetcher_.release_all();
  unit.begin_update();
}

void Engine::Impl::publish(ShardedUnit& unit) {
  const auto low = unit.low_precision_owned();
  if (unit.options().is_trained && low.defined()) low.copy_(unit.master());
  unit.publish_shard();
  if (!unit.options().is_resident) return;
  ShardedUnit::begin_gather({&unit});
  unit.finish_gather();
}

void Engine::Impl::unshard_model() {
  check_not_spent("unshard_model");
  fetcher_.check_idle("unshard_model");
  zero_grad();
  // Values first: replacing a parameter's memory is an error while its uses
  // are watched.
  std::vector<std::pair<const ParamState*, at::Tensor>> values;
  for (auto* unit : model_.all()) {
    fetcher_.begin_exact_access({unit});
    for (const auto& param : unit->params()) {
      values.emplace_back(&param, param.tensor().detach().clone());
    }
    fetcher_.end_access({unit});
  }
  fetcher_.release_all();
  fetcher_.stop_watching();
  for (const auto& [param, value] : values) {
    for (const auto& tensor : param->tensors) tensor.set_data(value);
  }
  is_spent_ = true;
}

StepReport Engine::Impl::step() {
  check_not_spent("step");
  TORCH_CHECK_VALUE(micro_steps_ > 0, where(),
                    ": step was called before backward; call backward(loss) "
                    "first");
  StepReport report;
  begin_report(report);
  if (config_.managed_gradient_accumulation && !is_boundary()) return report;

  fetcher_.check_idle("step");
  fetcher_.verify();
  // What is whole is about to be out of date, and so are secondary shards.
  fetcher_.end_step();
  const auto before_update = params_bytes();
  const ProfileRange range("nfold::step");
  const auto start = Clock::now();
  report.is_boundary = true;
  reduce_over_replicas();
  const bool is_finite = measure_gradients(report);
  const bool is_checked =
      !config_.bf16.enabled || config_.bf16.check_grad_overflow;
  report.is_skipped = !is_finite && is_checked;
  if (report.is_skipped) {
    log_warning(
        "step {}: skipped, gradients are not finite ({}); loss scale {}",
        steps_ + 1, report.non_finite, backward_scale_);
    reducer_.drop_feedback();
  }
  try {
    scaler_.update(report.is_skipped);
  } catch (const c10::Error& error) {
    zero_grad();
    TORCH_CHECK_VALUE(false, where(), ": ", error.what_without_backtrace(),
                      " First non-finite gradient: ", report.non_finite, ".");
  }
  if (!report.is_skipped) {
    // Nothing can clip what is not finite, and nobody asked to skip it.
    const double factor =
        is_finite ? clip_factor(report.grad_norm, config_.gradient_clipping)
                  : 1.0;
    report.clipped_grad_norm = report.grad_norm / factor;
    if (optimizer_) update(grad_scale() / factor);
    ++updates_;
    if (schedule_) schedule_->apply(updates_, optimizer_->groups());
  }
  for (auto* unit : model_.trained()) unit->clear_grad();
  is_reduced_over_replicas_ = false;
  reducer_.clear_non_finite();
  micro_steps_ = 0;
  report.step = ++steps_;
  tell_position();
  timers_.last_end = Clock::now();
  report.optimizer_ms = ms_between(start, timers_.last_end);
  finish_report(report);
  report.memory.params_bytes =
      std::max(report.memory.params_bytes, before_update);
  return report;
}

void Engine::Impl::begin_report(StepReport& report) const {
  report.step = steps_;
  report.loss_scale = backward_scale_;
  if (optimizer_ && !optimizer_->groups().empty()) {
    report.lr = optimizer_->groups().front().lr;
  }
}

void Engine::Impl::finish_report(StepReport& report) {
  report.forward_ms = timers_.forward_ms;
  report.backward_ms = timers_.backward_ms;
  report.comm_wait_ms = timers_.comm_wait_ms;
  const auto end = timers_.last_end;
  timers_ = Timers{};
  timers_.last_end = end;
  const auto interval = config_.steps_per_print.value_or(0);
  if (interval > 0 && steps_ % interval == 0) {
    log_info("step {}: lr {:g}, gradient norm {:g}, loss scale {:g}{}", steps_,
             report.lr, report.grad_norm, report.loss_scale,
             report.is_skipped ? ", skipped" : "");
  }
  report.memory = memory();
  const auto counts = comm_counts();
  for (int i = 0; i < kNumCollectives; ++i) {
    report.comm[i].calls = counts[i].calls - comm_at_last_step_[i].calls;
    report.comm[i].bytes = counts[i].bytes - comm_at_last_step_[i].bytes;
  }
  comm_at_last_step_ = counts;
}

CommCounts Engine::Impl::comm_counts() const {
  CommCounts sum{};
  for (const auto* group : mesh_.groups()) {
    const auto counts = group->counts();
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i].calls += counts[i].calls;
      sum[i].bytes += counts[i].bytes;
    }
  }
  return sum;
}

std::int64_t Engine::Impl::params_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& unit : model_.units()) bytes += unit->params_bytes();
  return bytes;
}

std::int64_t Engine::Impl::held_grads_bytes() const {
  std::int64_t bytes = reducer_.local_bytes() + reducer_.feedback_bytes();
  for (const auto* unit : model_.trained()) bytes += unit->grad_bytes();
  return bytes;
}

MemoryReport Engine::Impl::memory() const {
  MemoryReport report;
  report.params_bytes = params_bytes();
  for (const auto& unit : model_.units()) {
    report.optimizer_bytes += unit->master_bytes();
  }
  report.grads_bytes = grads_bytes_;
  if (optimizer_) report.optimizer_bytes += optimizer_->state_bytes();
  report.bucket_peak_bytes = reducer_.peak_bytes();
  report.gathered_peak_bytes = fetcher_.counts().peak_bytes;
  report.peak_rss_bytes = process_memory().peak_rss_bytes;
  return report;
}

MemoryReport Engine::Impl::unsharded_memory() const {
  MemoryReport report;
  for (const auto& unit : model_.units()) {
    std::int64_t numel = 0;
    for (const auto& param : unit->params()) numel += param.tensor().numel();
    const auto& options = unit->options();
    // One process has the experts of all ranks.
    if (options.groups.experts) numel *= options.groups.experts->size();
    const auto bytes = [&](at::ScalarType dtype) {
      return numel * static_cast<std::int64_t>(c10::elementSize(dtype));
    };
    report.params_bytes += bytes(options.dtype);
    if (!options.is_trained) continue;
    report.grads_bytes += bytes(options.grad_dtype);
    if (options.master_dtype != options.dtype) {
      report.optimizer_bytes += bytes(options.master_dtype);
    }
    if (optimizer_) {
      report.optimizer_bytes +=
          optimizer_->num_states() * bytes(options.master_dtype);
    }
  }
  return report;
}

Engine::Engine(std::shared_ptr<torch::nn::Module> module, Mesh& mesh,
               const Config& config, EngineOptions options) {
  TORCH_CHECK_VALUE(module, "the engine needs a module but was given null");
  TORCH_CHECK_NOT_IMPLEMENTED(
      mesh.pipeline_parallel_size() == 1, "[rank ", mesh.rank(),
      "] an engine over pipeline stages is not available in this version: "
      "norm, clipping and skipped steps would differ between the ",
      mesh.pipeline_parallel_size(),
      " stages. Train without the engine (nfold/norms.h, nfold/clip.h), or "
      "give a provider without pipeline groups.");
  for (const auto& param : module->parameters()) {
    TORCH_CHECK_VALUE(!is_deferred_here(param),
                      "an engine was made inside of the function that "
                      "nfold::init calls, over a module that it builds; make "
                      "the engine after init has returned");
  }
  // Inside of that function an engine of another module is made as always.
  const ConstructionPause pause;
  impl_ = std::make_unique<Impl>(std::move(module), mesh, config,
                                 std::move(options));
}

Engine::~Engine() = default;

void Engine::backward(const at::Tensor& loss) { impl_->backward(loss); }
StepReport Engine::step() { return impl_->step(); }
void Engine::unshard_model() { impl_->unshard_model(); }
void Engine::zero_grad() { impl_->zero_grad(); }
bool Engine::is_boundary() const { return impl_->is_boundary(); }
std::int64_t Engine::steps() const { return impl_->steps(); }
double Engine::loss_scale() const { return impl_->loss_scale(); }
MemoryReport Engine::memory() const { return impl_->memory(); }
MemoryReport Engine::unsharded_memory() const {
  return impl_->unsharded_memory();
}
const Config& Engine::config() const { return impl_->config(); }

std::vector<double> Engine::lr() const {
  std::vector<double> rates;
  if (!impl_->optimizer()) return rates;
  for (const auto& group : impl_->optimizer()->groups()) {
    rates.push_back(group.lr);
  }
  return rates;
}

void Engine::set_lr(double lr) {
  TORCH_CHECK_VALUE(impl_->optimizer(), "set_lr: this run has no optimizer");
  for (auto& group : impl_->optimizer()->groups()) group.lr = lr;
}

}  // namespace nfold
