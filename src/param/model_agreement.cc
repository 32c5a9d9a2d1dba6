#include "param/model_agreement.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "base/hash.h"
#include "comm/gather_table.h"
#include "nfold/collectives.h"

namespace nfold {
namespace {

std::vector<NamedTensor> tensors_of(const torch::nn::Module& module,
                                    const std::vector<ParamState>& params) {
  std::vector<NamedTensor> tensors;
  for (const auto& param : params) {
    tensors.push_back({param.name, param.tensor().detach(), param.placement});
  }
  for (auto& buffer : buffers_of(module)) tensors.push_back(std::move(buffer));
  return tensors;
}

// One line for each tensor; equal lines mean equal structure.
std::string line_of(const ParamState& param) {
  std::ostringstream text;
  const auto& tensor = param.tensor();
  text << param.name << ": " << tensor.sizes() << ' ' << tensor.scalar_type();
  if (!tensor.requires_grad()) text << ", frozen";
  for (std::size_t k = 1; k < param.names.size(); ++k) {
    text << ", tied to " << param.names[k];
  }
  return text.str() + '\n';
}

std::string line_of_buffer(const NamedTensor& buffer) {
  std::ostringstream text;
  text << buffer.name << ": " << buffer.tensor.sizes() << ' '
       << buffer.tensor.scalar_type() << ", buffer\n";
  return text.str();
}

// By size of the expert group, what the ranks that hold it must have alike. 1,
// which every rank looks at first, says which others there are.
std::map<int, std::string> descriptions(const torch::nn::Module& module,
                                        const std::vector<ParamState>& params) {
  std::map<int, std::string> texts{{1, ""}};
  std::map<int, int> counts;
  for (const auto& param : params) {
    texts[param.placement.expert_size] += line_of(param);
    ++counts[param.placement.expert_size];
  }
  for (const auto& buffer : buffers_of(module)) {
    texts[buffer.placement.expert_size] += line_of_buffer(buffer);
    ++counts[buffer.placement.expert_size];
  }
  for (const auto& [size, count] : counts) {
    if (size == 1) continue;
    texts[1] += "experts shared out over " + std::to_string(size) +
                " ranks: " + std::to_string(count) + " tensors\n";
  }
  return texts;
}

std::int64_t hash_of_values(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  return static_cast<std::int64_t>(
      hash64(dense.const_data_ptr(), dense.nbytes()));
}

std::string broadcast_text(Group& group, const std::string& own,
                           std::int64_t length, int source) {
  auto bytes = at::empty({length}, at::kByte);
  if (group.rank() == source) {
    std::copy(own.begin(), own.end(), bytes.mutable_data_ptr<std::uint8_t>());
  }
  broadcast(group, bytes, source).wait();
  const auto* data = bytes.const_data_ptr<std::uint8_t>();
  return std::string(data, data + length);
}

// The first line in which two descriptions differ.
std::pair<std::string, std::string> first_difference(const std::string& a,
                                                     const std::string& b) {
  std::istringstream a_lines(a);
  std::istringstream b_lines(b);
  for (;;) {
    std::string a_line;
    std::string b_line;
    const bool has_a = static_cast<bool>(std::getline(a_lines, a_line));
    const bool has_b = static_cast<bool>(std::getline(b_lines, b_line));
    if (!has_a) a_line = "nothing more";
    if (!has_b) b_line = "nothing more";
    if (a_line != b_line || (!has_a && !has_b)) return {a_line, b_line};
  }
}

void check_same_text(Group& group, const std::string& description) {
  if (group.size() == 1) return;
  const auto hash =
      static_cast<std::int64_t>(hash64(description.data(), description.size()));
  const auto table = gather_table(
      group, {hash, static_cast<std::int64_t>(description.size())});
  const auto cells = table.accessor<std::int64_t, 2>();
  for (int other = 1; other < group.size(); ++other) {
    if (cells[other][0] == cells[0][0]) continue;
    const auto expected =
        broadcast_text(group, description, cells[0][1], /*source=*/0);
    const auto found = broadcast_text(group, description, cells[other][1],
                                      /*source=*/other);
    const auto [expected_line, found_line] = first_difference(expected, found);
    TORCH_CHECK_VALUE(
        false, "[rank ", group.global_rank(),
        "] the ranks built different models: expected (rank ",
        group.global_ranks().front(), ") ", expected_line, " but found (rank ",
        group.global_ranks()[static_cast<std::size_t>(other)], ") ", found_line,
        "; construct the same model on every rank");
  }
}

}  // namespace

std::vector<NamedTensor> buffers_of(const torch::nn::Module& module) {
  std::vector<NamedTensor> buffers;
  for (const auto& buffer : module.named_buffers()) {
    if (buffer.value().defined()) {
      buffers.push_back({buffer.key(), buffer.value().detach(),
                         placement_in(module, buffer.key())});
    }
  }
  return buffers;
}

void check_same_structure(const GroupsOf& groups_of,
                          const torch::nn::Module& module,
                          const std::vector<ParamState>& params) {
  for (const auto& [size, text] : descriptions(module, params)) {
    check_same_text(*groups_of({.expert_size = size}).holders, text);
  }
}

std::vector<std::string> agree_on_values(
    Group& group, const std::vector<NamedTensor>& tensors) {
  if (group.size() == 1 || tensors.empty()) return {};
  std::vector<std::int64_t> hashes;
  for (const auto& tensor : tensors) {
    hashes.push_back(hash_of_values(tensor.tensor));
  }
  const auto table = gather_table(group, hashes);
  const auto cells = table.accessor<std::int64_t, 2>();
  std::vector<std::string> differing;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    bool differs = false;
    for (int other = 1; other < group.size(); ++other) {
      differs = differs || cells[other][static_cast<std::int64_t>(i)] !=
                               cells[0][static_cast<std::int64_t>(i)];
    }
    if (!differs) continue;
    differing.push_back(tensors[i].name);
    auto values = tensors[i].tensor.contiguous();
    broadcast(group, values, /*source=*/0).wait();
    tensors[i].tensor.copy_(values);
  }
  return differing;
}

std::vector<std::string> agree_on_values(
    const GroupsOf& groups_of, const std::vector<NamedTensor>& tensors) {
  // In an order that all ranks have, whatever order their tensors have.
  std::map<std::pair<int, bool>, std::vector<NamedTensor>> by_placement;
  for (const auto& tensor : tensors) {
    by_placement[{tensor.placement.expert_size,
                  tensor.placement.is_tensor_split}]
        .push_back(tensor);
  }
  std::vector<std::string> differing;
  for (const auto& [key, together] : by_placement) {
    const auto groups = groups_of(together.front().placement);
    for (auto* group : {groups.holders, groups.tensor_replicas}) {
      if (!group) continue;
      for (auto& name : agree_on_values(*group, together)) {
        if (std::count(differing.begin(), differing.end(), name) == 0) {
          differing.push_back(std::move(name));
        }
      }
    }
  }
  return differing;
}

std::vector<std::string> agree_on_model(const GroupsOf& groups_of,
                                        const torch::nn::Module& module,
                                        const std::vector<ParamState>& params) {
  check_same_structure(groups_of, module, params);
  return agree_on_values(groups_of, tensors_of(module, params));
}

}  // namespace nfold
