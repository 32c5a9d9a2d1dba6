#include "kernels/sum_tree.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kernels/simd.h"
#include "kernels/tensor_check.h"

namespace nfold::kernels {
namespace {

// Elements worked on at a time: the partial sums of a few levels of the tree
// stay in the first-level cache.
constexpr std::int64_t kTreeBlockNumel = 1024;
constexpr std::int64_t kSlotBytes = kTreeBlockNumel * sizeof(double);
constexpr std::int64_t kTreeGrainNumel = 32 * kTreeBlockNumel;

// Where a step reads or writes: an input, a slot for partial results, or out.
struct Place {
  enum class Kind : std::uint8_t { kInput, kSlot, kOut };
  Kind kind;
  std::size_t index = 0;
};

enum class Action : std::uint8_t {
  kReduceElements,
  kReduceWide,
  kWiden,
  kNarrow,
};

struct Step {
  Action action;
  Place to;
  Place a;
  Place b{Place::Kind::kSlot};
};

struct Plan {
  std::vector<Step> steps;
  std::size_t num_slots = 0;
};

// The tree as a list of steps over at most log2(n)+1 slots. Sub-trees are
// complete from left to right like the digits of a binary counter; what is left
// at the end is joined from the right.
Plan plan_tree(std::size_t num_inputs, bool is_wide) {
  struct SubTree {
    Place place;
    std::size_t num_inputs;
  };
  Plan plan;
  std::vector<SubTree> open;
  const auto slot = [&plan](std::size_t index) {
    plan.num_slots = std::max(plan.num_slots, index + 1);
    return Place{Place::Kind::kSlot, index};
  };
  const auto join_last_two = [&] {
    const SubTree right = open.back();
    open.pop_back();
    SubTree& left = open.back();
    const Place to = slot(open.size() - 1);
    plan.steps.push_back({Action::kReduceWide, to, left.place, right.place});
    left = {to, left.num_inputs + right.num_inputs};
  };
  for (std::size_t i = 0; i < num_inputs; i += 2) {
    const Place first{Place::Kind::kInput, i};
    if (i + 1 < num_inputs) {
      const Place second{Place::Kind::kInput, i + 1};
      const Place to = slot(open.size());
      plan.steps.push_back({Action::kReduceElements, to, first, second});
      open.push_back({to, 2});
    } else if (is_wide) {
      open.push_back({first, 1});
    } else {
      const Place to = slot(open.size());
      plan.steps.push_back({Action::kWiden, to, first});
      open.push_back({to, 1});
    }
    while (open.size() > 1 &&
           open[open.size() - 2].num_inputs == open.back().num_inputs) {
      join_last_two();
    }
  }
  while (open.size() > 1) join_last_two();
  const Place out{Place::Kind::kOut};
  if (is_wide) {
    plan.steps.back().to = out;
  } else {
    plan.steps.push_back({Action::kNarrow, out, open.front().place});
  }
  return plan;
}

struct AlignedDelete {
  void operator()(std::byte* bytes) const {
    ::operator delete[](bytes, std::align_val_t{64});
  }
};

class TreeReduction {
 public:
  TreeReduction(const ReduceLoops& reduce, Element element,
                std::size_t num_inputs, Stores stores)
      : stores_(stores),
        reduce_(reduce),
        widen_(loops().widen[static_cast<int>(element)]),
        narrow_(loops().narrow[static_cast<int>(element)]),
        element_bytes_(bytes_of(element)),
        plan_(plan_tree(num_inputs, widen_ == nullptr)) {}

  void run(std::byte* out, const std::vector<const std::byte*>& inputs,
           std::int64_t begin, std::int64_t end) const {
    const std::unique_ptr<std::byte[], AlignedDelete> slots(new (
        std::align_val_t{64}) std::byte[(plan_.num_slots + 1) * kSlotBytes]);
    // Streamed sums are made in the last slot first.
    const bool is_streamed = stores_ == Stores::kStreaming;
    std::byte* const sums = slots.get() + plan_.num_slots * kSlotBytes;
    const auto at = [&](const Place& place, std::int64_t offset_bytes) {
      switch (place.kind) {
        case Place::Kind::kInput:
          // Inputs are only read: of the places, steps write slots and out.
          return const_cast<std::byte*>(inputs[place.index]) + offset_bytes;
        case Place::Kind::kSlot:
          return slots.get() + place.index * kSlotBytes;
        case Place::Kind::kOut:
          break;
      }
      return is_streamed ? sums : out + offset_bytes;
    };
    for (std::int64_t first = begin; first < end; first += kTreeBlockNumel) {
      const std::int64_t numel = std::min(kTreeBlockNumel, end - first);
      const std::int64_t offset_bytes = first * element_bytes_;
      for (const Step& step : plan_.steps) {
        std::byte* to = at(step.to, offset_bytes);
        const std::byte* a = at(step.a, offset_bytes);
        const std::byte* b = at(step.b, offset_bytes);
        switch (step.action) {
          case Action::kReduceElements:
            reduce_.of_elements(to, a, b, numel);
            break;
          case Action::kReduceWide:
            reduce_.of_wide(to, a, b, numel);
            break;
          case Action::kWiden:
            widen_(to, a, numel);
            break;
          case Action::kNarrow:
            narrow_(to, a, numel);
            break;
        }
      }
      if (is_streamed) {
        loops().stream(out + offset_bytes, sums, numel * element_bytes_);
      }
    }
    if (is_streamed) loops().finish_stream();
  }

 private:
  Stores stores_;
  ReduceLoops reduce_;
  UnaryLoop widen_;
  UnaryLoop narrow_;
  std::int64_t element_bytes_;
  Plan plan_;
};

void reduce(const char* kernel, const ReduceLoops (&table)[kNumElements],
            const at::Tensor& out, at::ArrayRef<at::Tensor> inputs,
            Stores stores) {
  const Element element = checked_element(out, kernel, "out");
  TORCH_CHECK_VALUE(!inputs.empty(), kernel,
                    ": expected at least one input but found none");
  std::vector<const std::byte*> pointers;
  pointers.reserve(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor& input = inputs[i];
    const std::string argument = "inputs[" + std::to_string(i) + "]";
    checked_element(input, kernel, argument.c_str());
    TORCH_CHECK_VALUE(input.scalar_type() == out.scalar_type(), kernel, ": ",
                      argument, ": expected dtype ", out.scalar_type(),
                      " as out but found ", input.scalar_type());
    check_numel(input, out.numel(), kernel, argument.c_str());
    pointers.push_back(static_cast<const std::byte*>(input.const_data_ptr()));
  }
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  if (inputs.size() == 1) {
    if (to != pointers[0]) {
      copy_bytes(to, pointers[0], static_cast<std::int64_t>(out.nbytes()),
                 stores);
    }
    return;
  }
  // In place the lines are in a cache already.
  if (std::find(pointers.begin(), pointers.end(), to) != pointers.end()) {
    stores = Stores::kCached;
  }
  const TreeReduction reduction(table[static_cast<int>(element)], element,
                                inputs.size(), stores);
  at::parallel_for(0, out.numel(), kTreeGrainNumel,
                   [&](std::int64_t begin, std::int64_t end) {
                     reduction.run(to, pointers, begin, end);
                   });
}

}  // namespace

void sum_tree(at::Tensor out, at::ArrayRef<at::Tensor> inputs, Stores stores) {
  reduce("sum_tree", loops().sum, out, inputs, stores);
}

void max_of(at::Tensor out, at::ArrayRef<at::Tensor> inputs, Stores stores) {
  reduce("max_of", loops().max, out, inputs, stores);
}

}  // namespace nfold::kernels
