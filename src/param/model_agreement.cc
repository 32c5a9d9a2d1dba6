#include "param/model_agreement.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <sstream>

#include "base/hash.h"
#include "nfold/collectives.h"

namespace nfold {
namespace {

std::vector<NamedTensor> tensors_of(const torch::nn::Module& module,
                                    const std::vector<ParamState>& params) {
  std::vector<NamedTensor> tensors;
  for (const auto& param : params) {
    tensors.push_back({param.name, param.tensor().detach()});
  }
  for (auto& buffer : buffers_of(module)) tensors.push_back(std::move(buffer));
  return tensors;
}

// One line for each tensor; equal lines mean equal structure.
std::string describe(const std::vector<NamedTensor>& tensors,
                     const std::vector<ParamState>& params) {
  std::ostringstream text;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& tensor = tensors[i].tensor;
    text << tensors[i].name << ": " << tensor.sizes() << ' '
         << tensor.scalar_type();
    if (i < params.size()) {
      if (!params[i].tensor().requires_grad()) text << ", frozen";
      for (std::size_t k = 1; k < params[i].names.size(); ++k) {
        text << ", tied to " << params[i].names[k];
      }
    } else {
      text << ", buffer";
    }
    text << '\n';
  }
  return text.str();
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

}  // namespace

at::Tensor gather_table(Group& group, const std::vector<std::int64_t>& values) {
  const auto count = static_cast<std::int64_t>(values.size());
  auto table = at::empty({group.size() * count}, at::kLong);
  auto own = table.narrow(0, group.rank() * count, count);
  std::copy(values.begin(), values.end(), own.mutable_data_ptr<std::int64_t>());
  all_gather(group, table, own).wait();
  return table.view({group.size(), count});
}

std::vector<NamedTensor> buffers_of(const torch::nn::Module& module) {
  std::vector<NamedTensor> buffers;
  for (const auto& buffer : module.named_buffers()) {
    if (buffer.value().defined()) {
      buffers.push_back({buffer.key(), buffer.value().detach()});
    }
  }
  return buffers;
}

void check_same_structure(Group& group, const torch::nn::Module& module,
                          const std::vector<ParamState>& params) {
  if (group.size() == 1) return;
  const auto description = describe(tensors_of(module, params), params);
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
        false, "[rank ", group.rank(),
        "] the ranks built different models: ", "expected (rank 0) ",
        expected_line, " but found (rank ", other, ") ", found_line,
        "; construct the same model on every rank");
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

std::vector<std::string> agree_on_model(Group& group,
                                        const torch::nn::Module& module,
                                        const std::vector<ParamState>& params) {
  check_same_structure(group, module, params);
  return agree_on_values(group, tensors_of(module, params));
}

}  // namespace nfold
