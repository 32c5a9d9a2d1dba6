// What torch's own distributed code does with a backend of nfold.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <cstdio>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "comm/c10d_pair_test.h"
#include "nfold/errors.h"
#include "testing/process_world.h"

namespace nfold {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ProcessGroupPointer = c10::intrusive_ptr<c10d::ProcessGroup>;

ProcessGroupPointer process_group_of(const BackendPointer& backend) {
  auto group = c10::make_intrusive<c10d::ProcessGroup>(
      c10::make_intrusive<c10d::HashStore>(), backend->getRank(),
      backend->getSize());
  group->setBackend(at::kCPU, c10d::ProcessGroup::CUSTOM, backend);
  group->setDefaultBackend(c10d::ProcessGroup::CUSTOM);
  return group;
}

TEST(C10dProcessGroup, CallsEveryCollective) {
  run_ranks(3, [](World& world) {
    const auto group = process_group_of(make_own_backend(world));
    const int rank = world.rank();
    std::vector<at::Tensor> one = {at::full({3}, rank + 1.0F)};
    group->allreduce(one)->wait();
    EXPECT_EQ(one[0][2].item<int>(), 6);
    group->allreduce_coalesced(one)->wait();
    EXPECT_EQ(one[0][2].item<int>(), 18);
    one[0].fill_(rank);
    group->broadcast(one, {.rootRank = 2})->wait();
    EXPECT_EQ(one[0][2].item<int>(), 2);

    std::vector<std::vector<at::Tensor>> lists = {
        {at::zeros({3}), at::zeros({3}), at::zeros({3})}};
    one[0].fill_(rank);
    group->allgather(lists, one)->wait();
    for (const std::size_t peer : {0, 1, 2}) {
      EXPECT_EQ(lists[0][peer][2].item<int>(), static_cast<int>(peer));
    }
    group->reduce_scatter(one, lists)->wait();
    EXPECT_EQ(one[0][2].item<int>(), 3 * rank);

    std::vector<at::Tensor> inputs;
    for (int peer = 0; peer < 3; ++peer) {
      inputs.push_back(at::full({3}, 10.0F * rank + peer));
    }
    group->alltoall(lists[0], inputs)->wait();
    for (const std::size_t peer : {0, 1, 2}) {
      EXPECT_EQ(lists[0][peer][2].item<int>(),
                static_cast<int>(10 * peer) + rank);
    }
    group->barrier()->wait();
    EXPECT_THROW(group->send(one, (rank + 1) % 3, 0), c10::NotImplementedError);
  });
}

TEST(C10dProcessGroup, BroadcastsCoalesced) {
  run_ranks(3, [](World& world) {
    const auto group = process_group_of(make_own_backend(world));
    std::vector<at::Tensor> tensors;
    for (const std::int64_t numel : {5, 1, 9}) {
      tensors.push_back(small_values(world.rank(), numel));
    }
    c10d::broadcast_coalesced(group, tensors, /*buffer_size=*/24, /*rank=*/1);
    for (const auto& tensor : tensors) {
      EXPECT_TRUE(at::equal(tensor, small_values(1, tensor.numel())));
    }
  });
}

// Weights and inputs are small integers, so gradients are exact.
torch::nn::Sequential integer_model() {
  torch::nn::Sequential model(torch::nn::Linear(6, 4), torch::nn::ReLU(),
                              torch::nn::Linear(4, 3));
  const torch::NoGradGuard no_grad;
  int seed = 0;
  for (auto& param : model->parameters()) {
    param.copy_(small_values(++seed, param.numel()).view(param.sizes()) - 2);
  }
  return model;
}

at::Tensor loss_of(torch::nn::Sequential& model, int rank, int step) {
  const auto input = small_values(rank + step, 12).view({2, 6});
  return (model->forward(input) * small_values(rank, 6).view({2, 3})).sum();
}

// The mean over ranks of the gradients, by one process.
std::vector<at::Tensor> mean_grads(int num_ranks, int step) {
  auto model = integer_model();
  for (int rank = 0; rank < num_ranks; ++rank) {
    loss_of(model, rank, step).backward();
  }
  std::vector<at::Tensor> grads;
  for (const auto& param : model->parameters()) {
    grads.push_back(param.grad() / num_ranks);
  }
  return grads;
}

void expect_grads(torch::nn::Sequential& model,
                  const std::vector<at::Tensor>& expected) {
  const auto params = model->parameters();
  ASSERT_EQ(params.size(), expected.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    EXPECT_TRUE(at::equal(params[i].grad(), expected[i])) << "parameter " << i;
  }
}

TEST(C10dProcessGroup, AveragesGradients) {
  run_ranks(4, [](World& world) {
    const auto group = process_group_of(make_own_backend(world));
    auto model = integer_model();
    loss_of(model, world.rank(), 0).backward();
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    for (const auto& param : model->parameters()) {
      std::vector<at::Tensor> grads = {param.grad()};
      works.push_back(
          group->allreduce(grads, {.reduceOp = c10d::ReduceOp::AVG}));
    }
    for (const auto& work : works) work->wait();
    expect_grads(model, mean_grads(4, 0));
  });
}

// The constructor of torch's reducer is another in each version.
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 13

std::unique_ptr<c10d::Reducer> make_reducer(torch::nn::Sequential& model,
                                            const ProcessGroupPointer& group) {
  auto params = model->parameters();
  std::vector<std::vector<std::size_t>> buckets = {{2, 3}, {0, 1}};
  return std::make_unique<c10d::Reducer>(
      params, std::move(buckets), group,
      /*expect_sparse_gradients=*/std::vector<bool>(params.size(), false),
      /*bucket_bytes_cap=*/64, /*find_unused_parameters=*/false,
      /*gradient_as_bucket_view=*/true,
      /*param_names=*/std::unordered_map<std::size_t, std::string>(),
      /*first_bucket_bytes_cap=*/64, /*skip_all_reduce_unused_params=*/false,
      /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<std::int64_t>());
}

class C10dReducer : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(CommHook, C10dReducer, ::testing::Bool());

// torch's data-parallel training; with a hook that communicates in fp16, which
// chains to the future of the work.
TEST_P(C10dReducer, AveragesGradients) {
  const bool compresses = GetParam();
  run_ranks(4, [compresses](World& world) {
    const auto group = process_group_of(make_own_backend(world));
    auto model = integer_model();
    const auto reducer = make_reducer(model, group);
    if (compresses) {
      reducer->register_builtin_comm_hook(
          c10d::BuiltinCommHookType::FP16_COMPRESS);
    }
    for (int step = 0; step < 3; ++step) {
      for (auto& param : model->parameters()) {
        if (param.grad().defined()) param.mutable_grad().zero_();
      }
      reducer->rebuild_buckets();
      const auto loss = loss_of(model, world.rank(), step);
      reducer->prepare_for_backward({loss});
      loss.backward();
      expect_grads(model, mean_grads(4, step));
    }
  });
}

#endif

const ProcessBody kReducesUntilTheEnd("C10dReducesUntilTheEnd", [] {
  auto world = World::from_environment({.timeout = std::chrono::minutes(5)});
  const auto group = process_group_of(make_own_backend(world));
  std::vector<at::Tensor> tensors = {at::zeros({1000})};
  for (int i = 0;; ++i) {
    group->allreduce(tensors)->wait();
    if (i == 3) {
      std::printf("under way\n");
      std::fflush(stdout);
    }
  }
});

TEST(C10dProcessGroup, NamesTheRankThatDied) {
  ProcessWorld ranks("C10dReducesUntilTheEnd", 3);
  for (int rank = 0; rank < 3; ++rank) ranks.wait_for_output(rank, "under way");
  ranks.kill(1);
  const auto results = ranks.wait();
  for (const std::size_t rank : {0, 2}) {
    EXPECT_EQ(results[rank].exit_code, 1);
    EXPECT_THAT(results[rank].output,
                HasSubstr(c10::str("[rank ", rank, "] group 'c10d'")));
    EXPECT_THAT(results[rank].output,
                ContainsRegex("connections? to ranks? [0-9, ]*1"));
  }
}

}  // namespace
}  // namespace nfold
