#include "nfold/backward_hooks.h"

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <unordered_set>
#include <utility>
#include <vector>

#include "nfold/errors.h"
#include "param/tensor_walk.h"

namespace nfold {

using torch::autograd::Node;

bool maybe_loss_for_backward(const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) return false;
  const auto& tensor = value.toTensor();
  return tensor.numel() == 1 && tensor.grad_fn() != nullptr;
}

// Held by the hooks themselves, so it must not hold their tensors.
class OutputBackwardHooks::State {
 public:
  explicit State(OutputHookFunctions functions)
      : functions_(std::move(functions)) {}

  at::Tensor on_grad(const at::Tensor& grad) {
    const int pass = torch::autograd::get_current_graph_task_id();
    if (last_pass_.exchange(pass) != pass && functions_.once) {
      functions_.once();
    }
    if (!functions_.per_tensor || !grad.defined()) return grad;
    return functions_.per_tensor(grad);
  }

  void add(const at::Tensor& tensor, unsigned position) {
    hooks_.push_back({WeakTensor(tensor.getIntrusivePtr()), position});
  }

  void remove_all() {
    for (const auto& hook : hooks_) {
      if (auto tensor = hook.tensor.lock()) {
        at::Tensor(std::move(tensor)).remove_hook(hook.position);
      }
    }
    hooks_.clear();
  }

 private:
  using WeakTensor =
      c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;
  struct Hook {
    WeakTensor tensor;
    unsigned position;
  };

  OutputHookFunctions functions_;
  std::vector<Hook> hooks_;
  std::atomic<int> last_pass_{-1};
};

OutputBackwardHooks::OutputBackwardHooks(OutputHookFunctions functions)
    : state_(std::make_shared<State>(std::move(functions))) {}

void OutputBackwardHooks::register_on(const c10::IValue& outputs) {
  remove();
  visit_tensors(outputs, [this](const at::Tensor& tensor) {
    if (tensor.grad_fn() == nullptr) return;
    state_->add(tensor, tensor.register_hook([state = state_](at::Tensor grad) {
      return state->on_grad(grad);
    }));
  });
}

void OutputBackwardHooks::remove() { state_->remove_all(); }

OutputBackwardHooks register_output_backward_hooks(
    const c10::IValue& outputs, std::function<void()> once,
    std::function<at::Tensor(const at::Tensor&)> per_tensor) {
  OutputBackwardHooks hooks({std::move(once), std::move(per_tensor)});
  hooks.register_on(outputs);
  return hooks;
}

// Which nodes a pass runs: all of its graph for backward(), those on the way
// to the inputs that were asked for with backward(inputs) and grad().
std::int64_t count_used_parameters_in_backward(
    at::ArrayRef<at::Tensor> params) {
  TORCH_CHECK_VALUE(torch::autograd::get_current_graph_task_id() != -1,
                    "count_used_parameters_in_backward: no backward is running "
                    "on this thread; call it from a hook of one");
  const auto* nodes = torch::autograd::get_current_graph_task_nodes_in_graph();
  const auto* wanted = torch::autograd::get_current_graph_task_exec_info();
  std::unordered_set<const Node*> used;
  for (const at::Tensor& param : params) {
    if (!param.defined() || !param.requires_grad()) continue;
    const auto edge = torch::autograd::impl::gradient_edge(param);
    Node* const node = edge.function.get();
    if (node == nullptr || !nodes->contains(node)) continue;
    if (!wanted->empty()) {
      const auto found = wanted->find(node);
      if (found == wanted->end() || !found->second.should_execute()) continue;
      TORCH_CHECK_NOT_IMPLEMENTED(
          found->second.captures_ == nullptr,
          "count_used_parameters_in_backward: grad() captures gradients "
          "instead of accumulating them; use backward()");
    }
    used.insert(node);
  }
  return static_cast<std::int64_t>(used.size());
}

}  // namespace nfold
