#include "nfold/activation_checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

// [Note: how checkpoint drops activations]
// Every operator that needs a tensor in backward stores it as a SavedVariable,
// and each of these asks the autograd engine for default hooks. In Python they
// come from torch.autograd.graph.saved_tensors_hooks; in C++ the only source is
// the virtual Engine::get_default_saved_variable_hooks, so checkpoint()
// installs an engine that differs in nothing else (set_default_engine_stub is
// the extension point that Python's own engine uses).
//
// The first run gives every saved tensor a numbered slot in a Frame and drops
// it. The first unpack of an empty slot runs the function again, collecting
// what it saves in the same order. Unlike a nested backward inside a custom
// Function, this leaves the one graph as it is: captured parameters get their
// gradients in the usual order and from the usual accumulators, so gradient
// hooks (and thereby bucketed reduction) see no difference.
//
// The inputs of a frame are SavedVariables too. So they are checked for
// in-place changes, and a checkpoint inside of another one leaves its inputs
// to the outer one.

namespace nfold {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::SavedVariableHooks;
using Function =
    std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

// Decides what becomes of the tensors saved on a thread while it is active.
class Saver {
 public:
  virtual ~Saver() = default;
  virtual std::unique_ptr<SavedVariableHooks> make_hooks() = 0;
};

// The savers active on this thread, innermost last. Thread-local because the
// engine is asked for hooks without any context but the calling thread.
std::vector<Saver*>& active_savers() {
  thread_local std::vector<Saver*> savers;
  return savers;
}

class SaverScope {
 public:
  explicit SaverScope(Saver& saver) { active_savers().push_back(&saver); }
  ~SaverScope() { active_savers().pop_back(); }
  SaverScope(const SaverScope&) = delete;
  SaverScope& operator=(const SaverScope&) = delete;
};

class CheckpointEngine : public torch::autograd::Engine {
 public:
  ~CheckpointEngine() override { stop(); }

  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks()
      override {
    auto& savers = active_savers();
    return savers.empty() ? nullptr : savers.back()->make_hooks();
  }

  static torch::autograd::Engine& instance() {
    // Never destroyed: a thread may still run backward while the process
    // exits.
    static auto* engine = new CheckpointEngine();
    return *engine;
  }

  static void install() {
    static const bool is_installed = [] {
      auto& current = torch::autograd::Engine::get_default_engine();
      auto& base = torch::autograd::Engine::get_base_engine();
      TORCH_CHECK_NOT_IMPLEMENTED(
          &current == &base,
          "nfold::checkpoint: this process already has an autograd engine of "
          "its own (Python's, for instance), which nfold does not replace. "
          "Use that front end's activation checkpointing, such as "
          "torch.utils.checkpoint with use_reentrant=False.");
      torch::autograd::set_default_engine_stub(&CheckpointEngine::instance);
      return true;
    }();
    (void)is_installed;
  }
};

// The random states that a function may draw from: the CPU's and those of the
// devices that its inputs are on.
class RandomState {
 public:
  static RandomState current(const std::vector<at::Device>& devices) {
    RandomState result;
    for (const at::Device& device : devices) {
      at::Generator generator = at::globalContext().defaultGenerator(device);
      std::lock_guard lock(generator.mutex());
      result.states_.emplace_back(generator, generator.get_state());
    }
    return result;
  }

  void restore() const {
    for (const auto& [generator, state] : states_) {
      at::Generator target = generator;
      std::lock_guard lock(target.mutex());
      target.set_state(state);
    }
  }

 private:
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

class RandomStateScope {
 public:
  RandomStateScope(const RandomState& wanted,
                   const std::vector<at::Device>& devices)
      : previous_(RandomState::current(devices)) {
    wanted.restore();
  }
  ~RandomStateScope() { previous_.restore(); }
  RandomStateScope(const RandomStateScope&) = delete;
  RandomStateScope& operator=(const RandomStateScope&) = delete;

 private:
  RandomState previous_;
};

struct Autocast {
  struct Setting {
    at::DeviceType device;
    bool is_enabled;
    at::ScalarType dtype;
  };
  std::vector<Setting> settings;
  bool is_cache_enabled = true;

  static Autocast current(const std::vector<at::Device>& devices) {
    Autocast result;
    for (const at::Device& device : devices) {
      result.settings.push_back(
          {device.type(), at::autocast::is_autocast_enabled(device.type()),
           at::autocast::get_autocast_dtype(device.type())});
    }
    result.is_cache_enabled = at::autocast::is_autocast_cache_enabled();
    return result;
  }

  void restore() const {
    for (const Setting& setting : settings) {
      at::autocast::set_autocast_enabled(setting.device, setting.is_enabled);
      at::autocast::set_autocast_dtype(setting.device, setting.dtype);
    }
    at::autocast::set_autocast_cache_enabled(is_cache_enabled);
  }
};

class AutocastScope {
 public:
  AutocastScope(const Autocast& wanted, const std::vector<at::Device>& devices)
      : previous_(Autocast::current(devices)) {
    wanted.restore();
  }
  ~AutocastScope() { previous_.restore(); }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  Autocast previous_;
};

struct TensorMeta {
  std::vector<std::int64_t> sizes;
  at::ScalarType dtype;
  at::Device device;

  static TensorMeta of(const at::Tensor& tensor) {
    return {tensor.sizes().vec(), tensor.scalar_type(), tensor.device()};
  }
  bool operator==(const TensorMeta&) const = default;
};

std::ostream& operator<<(std::ostream& out, const TensorMeta& meta) {
  return out << meta.dtype << at::IntArrayRef(meta.sizes) << " on "
             << meta.device;
}

// Leaves the second run once it has saved all that is needed. Not a
// std::exception, so that a function's own error handling lets it pass.
struct SecondRunComplete {};

// One call of checkpoint(). Lives as long as a graph node holds one of its
// slots.
class Frame {
 public:
  Frame(Function function, const std::vector<at::Tensor>& inputs)
      : function_(std::move(function)), devices_{at::Device(at::kCPU)} {
    for (const at::Tensor& input : inputs) {
      // With an outer checkpoint active this goes to the outer frame; see
      // [Note: how checkpoint drops activations].
      inputs_.emplace_back(input, /*is_output=*/false);
      if (input.defined() && !input.is_meta() &&
          std::find(devices_.begin(), devices_.end(), input.device()) ==
              devices_.end()) {
        devices_.push_back(input.device());
      }
    }
    random_state_ = RandomState::current(devices_);
    autocast_ = Autocast::current(devices_);
  }

  std::size_t add_slot(const at::Tensor& tensor) {
    std::lock_guard lock(mutex_);
    slots_.push_back({TensorMeta::of(tensor), at::Tensor(), true});
    return slots_.size() - 1;
  }

  // The slot's tensor, which is then no longer kept: a graph that is retained
  // runs the function again for each backward rather than hold activations.
  at::Tensor take(std::size_t index) {
    std::lock_guard lock(mutex_);
    if (!slots_[index].tensor.defined()) run_again();
    return std::exchange(slots_[index].tensor, at::Tensor());
  }

  void drop(std::size_t index) {
    std::lock_guard lock(mutex_);
    slots_[index].tensor.reset();
    slots_[index].is_needed = false;
  }

 private:
  struct Slot {
    TensorMeta meta;
    at::Tensor tensor;
    bool is_needed;

    bool is_empty() const { return is_needed && !tensor.defined(); }
  };

  // Receives what the second run saves, in the order of the slots.
  class Collector : public Saver {
   public:
    Collector(const std::vector<Slot>& slots, std::size_t num_needed)
        : slots_(slots), tensors_(num_needed) {}

    std::unique_ptr<SavedVariableHooks> make_hooks() override {
      return std::make_unique<Hooks>(*this);
    }
    std::size_t num_saved() const { return num_saved_; }
    std::vector<at::Tensor>& tensors() { return tensors_; }

   private:
    // Keeps the tensor as well, since the function may itself call backward.
    class Hooks : public SavedVariableHooks {
     public:
      explicit Hooks(Collector& collector) : collector_(collector) {}
      void call_pack_hook(const at::Tensor& tensor) override {
        tensor_ = tensor.detach();
        collector_.collect(tensor_);
      }
      at::Tensor call_unpack_hook() override { return tensor_.detach(); }

     private:
      Collector& collector_;  // used only while the function runs
      at::Tensor tensor_;
    };

    void collect(const at::Tensor& tensor) {
      if (num_saved_ >= tensors_.size()) return;
      const Slot& slot = slots_[num_saved_];
      const TensorMeta meta = TensorMeta::of(tensor);
      TORCH_CHECK_VALUE(
          meta == slot.meta, "nfold::checkpoint: the function saved ",
          slot.meta, " as tensor ", num_saved_,
          " for backward when it ran first, but ", meta,
          " when it ran again. It must do the same both times; does it depend "
          "on something that changed in between?");
      if (slot.is_empty()) tensors_[num_saved_] = tensor;
      ++num_saved_;
      if (num_saved_ == tensors_.size()) throw SecondRunComplete{};
    }

    const std::vector<Slot>& slots_;
    std::vector<at::Tensor> tensors_;
    std::size_t num_saved_ = 0;
  };

  void run_again() {
    std::size_t num_needed = slots_.size();
    while (num_needed > 0 && !slots_[num_needed - 1].is_empty()) --num_needed;
    std::vector<at::Tensor> inputs = detached_inputs();
    Collector collector(slots_, num_needed);
    {
      RandomStateScope random_scope(random_state_, devices_);
      AutocastScope autocast_scope(autocast_, devices_);
      at::AutoGradMode grad_mode(true);
      SaverScope saver_scope(collector);
      try {
        function_(inputs);
      } catch (const SecondRunComplete&) {
      }
    }
    TORCH_CHECK_VALUE(
        collector.num_saved() == num_needed,
        "nfold::checkpoint: the function saved at least ", num_needed,
        " tensors for backward when it ran first, but only ",
        collector.num_saved(),
        " when it ran again. It must do the same both times; does it depend "
        "on something that changed in between, such as a counter or "
        "train()/eval()?");
    // Only now, so that a second run that failed leaves no half of it.
    for (std::size_t i = 0; i < num_needed; ++i) {
      if (slots_[i].is_empty()) slots_[i].tensor = collector.tensors()[i];
    }
  }

  // Detached, so that hooks which the function adds to its inputs are not
  // added to the real graph a second time.
  std::vector<at::Tensor> detached_inputs() const {
    std::vector<at::Tensor> result;
    for (const SavedVariable& saved : inputs_) {
      at::Tensor input = saved.unpack();
      if (input.defined()) {
        const bool requires_grad = input.requires_grad();
        input = input.detach();
        input.requires_grad_(requires_grad);
      }
      result.push_back(std::move(input));
    }
    return result;
  }

  const Function function_;
  std::vector<at::Device> devices_;
  std::vector<SavedVariable> inputs_;
  RandomState random_state_;
  Autocast autocast_;
  // Recursive: the second run may let go of a graph that holds our slots.
  std::recursive_mutex mutex_;
  std::vector<Slot> slots_;  // guarded by mutex_
};

// The first run: every saved tensor becomes an empty slot.
class Dropper : public Saver {
 public:
  explicit Dropper(std::shared_ptr<Frame> frame) : frame_(std::move(frame)) {}
  std::unique_ptr<SavedVariableHooks> make_hooks() override {
    return std::make_unique<Hooks>(frame_);
  }

 private:
  class Hooks : public SavedVariableHooks {
   public:
    explicit Hooks(std::shared_ptr<Frame> frame) : frame_(std::move(frame)) {}
    ~Hooks() override {
      if (slot_.has_value()) frame_->drop(*slot_);
    }
    void call_pack_hook(const at::Tensor& tensor) override {
      slot_ = frame_->add_slot(tensor);
    }
    at::Tensor call_unpack_hook() override { return frame_->take(*slot_); }

   private:
    std::shared_ptr<Frame> frame_;
    std::optional<std::size_t> slot_;
  };

  std::shared_ptr<Frame> frame_;
};

}  // namespace

std::vector<at::Tensor> checkpoint(const Function& function,
                                   std::vector<at::Tensor> inputs) {
  TORCH_CHECK_VALUE(function, "nfold::checkpoint: the function is empty.");
  if (!at::GradMode::is_enabled()) return function(inputs);
  CheckpointEngine::install();
  Dropper dropper(std::make_shared<Frame>(function, inputs));
  SaverScope scope(dropper);
  return function(inputs);
}

at::Tensor checkpoint(
    const std::function<at::Tensor(const at::Tensor&)>& function,
    const at::Tensor& input) {
  TORCH_CHECK_VALUE(function, "nfold::checkpoint: the function is empty.");
  return checkpoint(Function([function](const std::vector<at::Tensor>& inputs) {
                      return std::vector<at::Tensor>{function(inputs[0])};
                    }),
                    std::vector<at::Tensor>{input})[0];
}

}  // namespace nfold
