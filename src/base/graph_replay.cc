#include "nfold/graph_replay.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <string>
#include <utility>

#include "nfold/errors.h"

namespace nfold {

// What a captured kernel has built in of a tensor.
struct TensorPlace {
  const void* address;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;
  at::ScalarType dtype;
};

namespace {

TensorPlace place_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.sizes().vec(), tensor.strides().vec(),
          tensor.scalar_type()};
}

std::vector<std::string>*& operators_of_thread() {
  thread_local std::vector<std::string>* operators = nullptr;
  return operators;
}

std::unique_ptr<at::ObserverContext> note_operator(
    const at::RecordFunction& function) {
  if (auto* operators = operators_of_thread()) {
    operators->emplace_back(function.name());
  }
  return nullptr;
}

// Notes the operators that its thread runs while it lives.
class OperatorRecording {
 public:
  OperatorRecording()
      : outer_(std::exchange(operators_of_thread(), &operators_)) {
    if (outer_ != nullptr) return;  // its callback serves this one too
    handle_ =
        at::addThreadLocalCallback(at::RecordFunctionCallback(note_operator)
                                       .scopes({at::RecordScope::FUNCTION}));
  }
  ~OperatorRecording() {
    operators_of_thread() = outer_;
    if (outer_ == nullptr) at::removeCallback(handle_);
  }
  OperatorRecording(const OperatorRecording&) = delete;
  OperatorRecording& operator=(const OperatorRecording&) = delete;

  std::vector<std::string> take() { return std::move(operators_); }

 private:
  std::vector<std::string> operators_;
  std::vector<std::string>* outer_;
  at::CallbackHandle handle_ = at::INVALID_CALLBACK_HANDLE;
};

struct Recorded {
  std::vector<at::Tensor> results;
  std::vector<std::string> operators;
};

Recorded run_recorded(const GraphReplay::Function& function) {
  const at::NoGradGuard no_grad;
  OperatorRecording recording;
  auto results = function();
  return {std::move(results), recording.take()};
}

void check_capturable(const std::vector<std::string>& operators) {
  for (const auto& name : operators) {
    TORCH_CHECK_VALUE(name != "aten::_local_scalar_dense",
                      "graph: the function reads the value of a tensor on the "
                      "host (item(), or a branch on a tensor), which a replay "
                      "would not do again; return the tensor and read it "
                      "afterwards");
  }
}

void check_operators(const std::vector<std::string>& expected,
                     const std::vector<std::string>& found) {
  const auto [e, f] = std::mismatch(expected.begin(), expected.end(),
                                    found.begin(), found.end());
  if (e == expected.end() && f == found.end()) return;
  TORCH_CHECK_VALUE(false, "graph: operator ", e - expected.begin(),
                    ": expected ", e == expected.end() ? "no more" : *e,
                    " as in the first call but found ",
                    f == found.end() ? "the end" : *f,
                    "; a replay would have done the former. Give branches "
                    "graphs of their own");
}

void check_place(std::size_t index, const TensorPlace& expected,
                 const TensorPlace& found) {
  constexpr const char* kRemedy =
      "; a replay would use the memory of the first call. Keep the tensors in "
      "place (zero gradients instead of dropping them), or call reset()";
  TORCH_CHECK_VALUE(found.dtype == expected.dtype, "graph: input ", index,
                    ": expected dtype ", expected.dtype,
                    " as in the first call but found ", found.dtype, kRemedy);
  TORCH_CHECK_VALUE(found.strides == expected.strides, "graph: input ", index,
                    ": expected strides ", at::IntArrayRef(expected.strides),
                    " as in the first call but found ",
                    at::IntArrayRef(found.strides), kRemedy);
  TORCH_CHECK_VALUE(found.address == expected.address, "graph: input ", index,
                    " of shape ", at::IntArrayRef(expected.sizes),
                    ": expected address ", expected.address,
                    " as in the first call but found ", found.address, kRemedy);
}

}  // namespace

struct GraphReplay::Graph {
  const void* identity;
  std::vector<double> constants;
  std::vector<TensorPlace> inputs;
  std::vector<std::string> operators;
  std::vector<at::Tensor> results;
};

GraphReplay::GraphReplay() = default;
GraphReplay::~GraphReplay() = default;

GraphReplay::Graph* GraphReplay::find(const GraphCall& call) {
  const auto has_shape = [](const TensorPlace& place,
                            const at::Tensor& tensor) {
    return tensor.sizes() == at::IntArrayRef(place.sizes);
  };
  for (const auto& graph : graphs_) {
    if (graph->identity == call.identity &&
        graph->constants == call.constants &&
        std::equal(graph->inputs.begin(), graph->inputs.end(),
                   call.inputs.begin(), call.inputs.end(), has_shape)) {
      return graph.get();
    }
  }
  return nullptr;
}

std::vector<at::Tensor> GraphReplay::run(const GraphCall& call,
                                         const Function& function) {
  std::vector<TensorPlace> places;
  for (const auto& input : call.inputs) {
    TORCH_CHECK_VALUE(input.defined(), "graph: input ", places.size(),
                      ": expected a tensor but found an undefined one");
    places.push_back(place_of(input));
  }
  Graph* graph = find(call);
  if (graph == nullptr) {
    auto recorded = run_recorded(function);
    check_capturable(recorded.operators);
    graphs_.push_back(std::make_unique<Graph>(
        Graph{call.identity, call.constants, std::move(places),
              std::move(recorded.operators), std::move(recorded.results)}));
    return graphs_.back()->results;
  }
  for (std::size_t i = 0; i < places.size(); ++i) {
    check_place(i, graph->inputs[i], places[i]);
  }
  const auto recorded = run_recorded(function);
  check_operators(graph->operators, recorded.operators);
  for (std::size_t i = 0; i < graph->results.size(); ++i) {
    if (!graph->results[i].is_same(recorded.results[i])) {
      graph->results[i].copy_(recorded.results[i]);
    }
  }
  ++num_replays_;
  return graph->results;
}

void GraphReplay::reset() { graphs_.clear(); }

std::int64_t GraphReplay::num_graphs() const {
  return static_cast<std::int64_t>(graphs_.size());
}

}  // namespace nfold
