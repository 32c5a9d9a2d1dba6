#include "nfold/c10d_backend.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "comm/c10d_call.h"
#include "comm/c10d_pair_test.h"
#include "nfold/collectives.h"
#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;
using C10dOp = c10d::ReduceOp;
using Sizes = std::vector<std::int64_t>;

constexpr at::ScalarType kReducedDtypes[] = {
    at::kFloat, at::kDouble, at::kHalf, at::kBFloat16,
    at::kChar,  at::kByte,   at::kInt,  at::kLong};
// The last is more than one phase of shared memory, and divides by no rank.
constexpr std::int64_t kOddNumels[] = {1, 7, 1023, 200003};

void expect_equal(const Tensors& ours, const Tensors& torchs,
                  const std::string& what) {
  ASSERT_EQ(ours.size(), torchs.size()) << what;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_EQ(ours[i].scalar_type(), torchs[i].scalar_type()) << what;
    EXPECT_TRUE(at::equal(ours[i], torchs[i])) << what << ", tensor " << i;
  }
}

Tensors zeros_for_each_rank(int size, std::int64_t numel,
                            at::ScalarType dtype = at::kFloat) {
  Tensors list;
  for (int i = 0; i < size; ++i) list.push_back(at::zeros({numel}, dtype));
  return list;
}

// Every test below runs with 2, 3 and 4 ranks.
class C10dBackend : public ::testing::TestWithParam<int> {
 protected:
  using Operation = std::function<Tensors(
      World&, c10d::Backend&, std::int64_t numel, at::ScalarType dtype)>;

  // The operation gives with nfold what it gives with gloo.
  static void expect_as_gloo(const Operation& operation,
                             at::ArrayRef<at::ScalarType> dtypes) {
    run_pairs(GetParam(), [&](World& world, const BackendPointer& ours,
                              const BackendPointer& gloo) {
      for (const auto dtype : dtypes) {
        for (const std::int64_t numel : kOddNumels) {
          expect_equal(operation(world, *ours, numel, dtype),
                       operation(world, *gloo, numel, dtype),
                       c10::str(dtype, " ", numel));
        }
      }
    });
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, C10dBackend, ::testing::Values(2, 3, 4));

TEST_P(C10dBackend, AllreduceGivesWhatGlooGives) {
  for (const auto op : {C10dOp::SUM, C10dOp::MAX, C10dOp::MIN}) {
    expect_as_gloo(
        [op](World& world, c10d::Backend& backend, std::int64_t numel,
             at::ScalarType dtype) {
          Tensors tensors = {small_values(world.rank(), numel, dtype)};
          EXPECT_TRUE(backend.allreduce(tensors, {.reduceOp = op})->wait());
          return tensors;
        },
        kReducedDtypes);
  }
}

TEST_P(C10dBackend, MinimumOfIntegersDoesNotOverflow) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    const auto low = std::numeric_limits<std::int64_t>::min();
    Tensors tensors = {
        at::full({3}, world.rank() == 1 ? low : std::int64_t{5}, at::kLong)};
    backend->allreduce(tensors, {.reduceOp = C10dOp::MIN})->wait();
    EXPECT_EQ(tensors[0][2].item<std::int64_t>(), low);
    tensors = {at::full({3}, 200 + world.rank(), at::kByte)};
    backend->allreduce(tensors, {.reduceOp = C10dOp::MIN})->wait();
    EXPECT_EQ(tensors[0][2].item<int>(), 200);
  });
}

TEST_P(C10dBackend, AverageIsTheSumDivided) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    const C10dOp op = C10dOp::AVG;
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      auto sum = small_values(world.rank(), 1023, dtype);
      all_reduce(world.group(), sum).wait();
      Tensors tensors = {small_values(world.rank(), 1023, dtype)};
      backend->allreduce(tensors, {.reduceOp = op})->wait();
      EXPECT_TRUE(at::equal(tensors[0], sum / world.size()));
    }
    Tensors integers = {at::ones({3}, at::kInt)};
    EXPECT_THAT(text_of<c10::NotImplementedError>(
                    [&] { backend->allreduce(integers, {.reduceOp = op}); }),
                HasSubstr("the average of Int is not implemented"));
  });
}

at::Tensor bools(std::vector<std::int64_t> values) {
  return at::tensor(values).to(at::kBool);
}

TEST_P(C10dBackend, BooleansAreOrAndAnd) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    const int is_first = world.rank() == 0 ? 1 : 0;
    Tensors tensors = {bools({is_first, 1, 0})};
    backend->allreduce(tensors)->wait();
    EXPECT_TRUE(at::equal(tensors[0], bools({1, 1, 0})));
    tensors = {bools({is_first, 1, 0})};
    backend->allreduce(tensors, {.reduceOp = C10dOp::MIN})->wait();
    EXPECT_TRUE(at::equal(tensors[0], bools({0, 1, 0})));
    auto input = at::full({world.size()}, is_first == 1, at::kBool);
    auto output = at::zeros({1}, at::kBool);
    backend->_reduce_scatter_base(output, input)->wait();
    EXPECT_TRUE(output.item<bool>());
  });
}

TEST_P(C10dBackend, AllreduceCoalescedGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        Tensors tensors = {
            small_values(world.rank(), numel, dtype),
            small_values(world.rank() + 1, 6, dtype).view({2, 3}),
            small_values(world.rank() + 2, 1, dtype)};
        backend.allreduce_coalesced(tensors)->wait();
        return tensors;
      },
      {at::kFloat, at::kLong});
}

TEST_P(C10dBackend, BroadcastGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        Tensors results;
        for (int root = 0; root < world.size(); ++root) {
          Tensors tensors = {small_values(world.rank(), numel, dtype)};
          backend.broadcast(tensors, {.rootRank = root})->wait();
          results.push_back(tensors[0]);
        }
        return results;
      },
      {at::kFloat, at::kHalf, at::kBool});
}

TEST_P(C10dBackend, ReduceGivesTheRootWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        Tensors tensors = {small_values(world.rank(), numel, dtype)};
        backend.reduce(tensors, {.rootRank = 1})->wait();
        return world.rank() == 1 ? tensors : Tensors{};
      },
      {at::kFloat, at::kInt});
  run_ranks(GetParam(), [](World& world) {
    Tensors tensors = {at::ones({5})};
    make_own_backend(world)->reduce(tensors, {.rootRank = 1})->wait();
    const int expected = world.rank() == 1 ? world.size() : 1;
    EXPECT_EQ(tensors[0][4].item<int>(), expected);
  });
}

TEST_P(C10dBackend, AllgatherGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        TensorLists outputs = {zeros_for_each_rank(world.size(), numel, dtype)};
        Tensors inputs = {small_values(world.rank(), numel, dtype)};
        backend.allgather(outputs, inputs)->wait();
        return outputs[0];
      },
      {at::kFloat, at::kBFloat16, at::kLong});
}

TEST_P(C10dBackend, AllgatherBaseGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        auto output = at::zeros({world.size() * numel}, dtype);
        auto input = small_values(world.rank(), numel, dtype);
        backend._allgather_base(output, input)->wait();
        return Tensors{output};
      },
      {at::kFloat, at::kBFloat16, at::kBool});
}

TEST_P(C10dBackend, AllgatherOfTensorsOfSeveralDtypes) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors inputs = {small_values(world.rank(), 7),
                      small_values(world.rank(), 3, at::kLong),
                      strided(small_values(world.rank(), 5, at::kHalf))};
    Tensors outputs;
    for (const auto& input : inputs) {
      outputs.push_back(
          at::zeros({world.size() * input.numel()}, input.options()));
    }
    // A shard that lies in place already.
    inputs[0] = outputs[0].narrow(0, world.rank() * 7, 7);
    inputs[0].copy_(small_values(world.rank(), 7));
    backend->allgather_into_tensor_coalesced(outputs, inputs)->wait();
    for (int rank = 0; rank < world.size(); ++rank) {
      EXPECT_TRUE(
          at::equal(outputs[0].narrow(0, rank * 7, 7), small_values(rank, 7)));
      EXPECT_TRUE(at::equal(outputs[1].narrow(0, rank * 3, 3),
                            small_values(rank, 3, at::kLong)));
      EXPECT_TRUE(at::equal(outputs[2].narrow(0, rank * 5, 5),
                            small_values(rank, 5, at::kHalf)));
    }
  });
}

TEST_P(C10dBackend, GatherAndScatterGiveWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        const int root = world.size() - 1;
        const bool is_root = world.rank() == root;
        TensorLists lists;
        if (is_root) {
          lists.push_back(zeros_for_each_rank(world.size(), numel, dtype));
        }
        Tensors own = {small_values(world.rank(), numel, dtype)};
        backend.gather(lists, own, {.rootRank = root})->wait();
        Tensors results = is_root ? lists[0] : Tensors{};
        if (is_root) std::swap(lists[0].front(), lists[0].back());
        backend.scatter(own, lists, {.rootRank = root})->wait();
        results.push_back(own[0]);
        return results;
      },
      {at::kFloat, at::kLong});
}

TEST_P(C10dBackend, ReduceScatterGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        TensorLists inputs(1);
        for (int i = 0; i < world.size(); ++i) {
          inputs[0].push_back(small_values(world.rank() + i, numel, dtype));
        }
        Tensors outputs = {at::zeros({numel}, dtype)};
        backend.reduce_scatter(outputs, inputs)->wait();
        return outputs;
      },
      {at::kFloat, at::kBFloat16, at::kLong});
}

TEST_P(C10dBackend, ReduceScatterBaseGivesWhatGlooGivesAndKeepsItsInput) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        const auto values =
            small_values(world.rank(), numel * world.size(), dtype);
        auto input = values.clone();
        auto output = at::zeros({numel}, dtype);
        backend._reduce_scatter_base(output, input)->wait();
        EXPECT_TRUE(at::equal(input, values));
        return Tensors{output};
      },
      {at::kFloat, at::kHalf, at::kInt});
}

TEST_P(C10dBackend, ReduceScatterOfSeveralTensors) {
  for (const auto op : {C10dOp::SUM, C10dOp::MIN, C10dOp::AVG}) {
    run_ranks(GetParam(), [op](World& world) {
      const auto backend = make_own_backend(world);
      Tensors inputs;
      Tensors outputs;
      Tensors expected;
      for (const std::int64_t numel : {7, 1023}) {
        const auto full = numel * world.size();
        inputs.push_back(small_values(world.rank(), full));
        outputs.push_back(at::zeros({numel}));
        expected.push_back(small_values(world.rank(), full));
        Tensors last = {expected.back()};
        backend->allreduce(last, {.reduceOp = op})->wait();
        expected.back() =
            expected.back().narrow(0, world.rank() * numel, numel);
      }
      outputs[1] = strided(outputs[1]);
      const auto kept = inputs[1].clone();
      backend
          ->reduce_scatter_tensor_coalesced(outputs, inputs, {.reduceOp = op})
          ->wait();
      expect_equal(outputs, expected, "sums");
      EXPECT_TRUE(at::equal(inputs[1], kept));
    });
  }
}

TEST_P(C10dBackend, AlltoallOfEqualPartsGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        auto input = small_values(world.rank(), numel * world.size(), dtype);
        auto output = at::zeros_like(input);
        Sizes no_sizes;
        backend.alltoall_base(output, input, no_sizes, no_sizes, {})->wait();
        return Tensors{output};
      },
      {at::kFloat, at::kByte});
}

// Rank r sends (r + i) % 3 rows to rank i, so some send none.
TEST_P(C10dBackend, AlltoallOfUnequalPartsGivesWhatGlooGives) {
  expect_as_gloo(
      [](World& world, c10d::Backend& backend, std::int64_t numel,
         at::ScalarType dtype) {
        Sizes counts;
        std::int64_t sum = 0;
        for (int i = 0; i < world.size(); ++i) {
          counts.push_back((world.rank() + i) % 3);
          sum += counts.back();
        }
        // (r + i) is the same both ways. gloo moves from its arguments.
        Sizes same_counts = counts;
        auto input =
            small_values(world.rank(), sum * numel, dtype).view({sum, numel});
        auto output = at::zeros_like(input);
        backend.alltoall_base(output, input, counts, same_counts, {})->wait();
        return Tensors{output};
      },
      {at::kFloat, at::kByte});
}

TEST_P(C10dBackend, AlltoallWhereNobodySendsAnything) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    auto empty = at::zeros({0, 4});
    Sizes none(static_cast<std::size_t>(world.size()), 0);
    backend->alltoall_base(empty, empty, none, none, {})->wait();
  });
}

TEST_P(C10dBackend, AlltoallOfTensorsOfAnySizes) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    const auto part = [](int from, int to) {
      return small_values(from + to, from + 10 * to, at::kHalf);
    };
    Tensors inputs;
    Tensors outputs;
    for (int peer = 0; peer < world.size(); ++peer) {
      inputs.push_back(part(world.rank(), peer));
      outputs.push_back(at::zeros_like(part(peer, world.rank())));
    }
    inputs.back() = strided(inputs.back());
    outputs.front() = strided(outputs.front());
    backend->alltoall(outputs, inputs, {})->wait();
    for (int peer = 0; peer < world.size(); ++peer) {
      EXPECT_TRUE(at::equal(outputs[static_cast<std::size_t>(peer)],
                            part(peer, world.rank())));
    }
  });
}

TEST_P(C10dBackend, TensorsNeedNotBeContiguous) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    const int size = world.size();
    const auto own = small_values(world.rank(), 15);
    const auto expect_sum = [&](const at::Tensor& tensor, std::int64_t begin,
                                std::int64_t numel) {
      auto sum = own.clone();
      all_reduce(world.group(), sum).wait();
      EXPECT_TRUE(at::equal(tensor.reshape(-1), sum.narrow(0, begin, numel)));
    };
    Tensors tensors = {at::zeros({5, 3}).t()};
    tensors[0].copy_(own.view({3, 5}));
    backend->allreduce(tensors)->wait();
    expect_sum(tensors[0], 0, 15);

    tensors = {strided(own), strided(own.narrow(0, 2, 4))};
    backend->allreduce_coalesced(tensors)->wait();
    expect_sum(tensors[0], 0, 15);
    expect_sum(tensors[1], 2, 4);

    tensors = {strided(own)};
    backend->broadcast(tensors, {.rootRank = 1})->wait();
    EXPECT_TRUE(at::equal(tensors[0], small_values(1, 15)));

    auto input = strided(own.narrow(0, 0, 3 * size));
    auto output = strided(at::zeros({3}));
    backend->_reduce_scatter_base(output, input)->wait();
    expect_sum(output, 3 * world.rank(), 3);

    auto gathered = strided(at::zeros({15 * size}));
    auto shard = strided(own);
    backend->_allgather_base(gathered, shard)->wait();
    auto swapped = strided(at::zeros({15 * size}));
    Sizes no_sizes;
    backend->alltoall_base(swapped, gathered, no_sizes, no_sizes, {})->wait();
    for (int rank = 0; rank < size; ++rank) {
      EXPECT_TRUE(
          at::equal(gathered.narrow(0, 15 * rank, 15), small_values(rank, 15)));
      EXPECT_TRUE(at::equal(swapped.narrow(0, 15 * rank, 15),
                            small_values(world.rank(), 15)));
    }
  });
}

TEST_P(C10dBackend, TakesTensorsWithoutElements) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    auto empty = at::zeros({0});
    Tensors tensors = {empty};
    backend->allreduce(tensors)->wait();
    backend->broadcast(tensors)->wait();
    backend->_allgather_base(empty, empty)->wait();
    backend->_reduce_scatter_base(empty, empty)->wait();
    TensorLists lists = {zeros_for_each_rank(world.size(), 0)};
    backend->allgather(lists, tensors)->wait();
  });
}

TEST_P(C10dBackend, ResultsAreNotSeenByAutograd) {
  run_ranks(GetParam(), [](World& world) {
    const auto backend = make_own_backend(world);
    auto leaf = strided(at::ones({6})).requires_grad_();
    Tensors tensors = {leaf};
    backend->allreduce(tensors, {.reduceOp = C10dOp::AVG})->wait();
    EXPECT_TRUE(leaf.is_leaf());
    EXPECT_TRUE(at::equal(leaf.detach(), at::ones({6})));
  });
}

TEST(C10dBackendOfOneRank, IsDoneWhenTheCallReturns) {
  run_ranks(1, [](World& world) {
    const auto backend = make_own_backend(world);
    auto tensor = at::full({4}, 3.0F);
    Tensors tensors = {tensor};
    EXPECT_TRUE(backend->allreduce(tensors)->isCompleted());
    EXPECT_TRUE(
        backend->allreduce(tensors, {.reduceOp = C10dOp::MIN})->isCompleted());
    EXPECT_EQ(tensor[0].item<int>(), 3);
    Sizes sizes = {4};
    auto output = at::zeros({4});
    EXPECT_TRUE(backend->alltoall_base(output, tensor, sizes, sizes, {})
                    ->isCompleted());
    EXPECT_TRUE(at::equal(output, tensor));
    TensorLists lists = {{at::zeros({4})}};
    backend->allgather(lists, tensors)->wait();
    EXPECT_TRUE(at::equal(lists[0][0], tensor));
  });
}

TEST(C10dBackendOptions, SayWhatTheGroupIs) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    EXPECT_EQ(backend->getBackendName(), "nfold");
    EXPECT_EQ(backend->getRank(), world.rank());
    EXPECT_EQ(backend->getSize(), 2);
    const auto options = backend->getBackendOptions();
    EXPECT_EQ(options->backend, "nfold");
    EXPECT_EQ(options->group_name, "c10d");
    EXPECT_EQ(options->timeout, ThreadWorldOptions{}.timeout);
    EXPECT_EQ(options->global_ranks_in_group,
              (std::vector<std::uint64_t>{0, 1}));
    EXPECT_THROW(make_c10d_backend(std::shared_ptr<Group>()), c10::ValueError);
  });
}

TEST(C10dBackendOfAStore, NeedsNoWorld) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  run_ranks(2, [&](World& world) {
    for (const auto transport : {Transport::kShm, Transport::kGloo}) {
      const auto backend = make_c10d_backend(
          c10::make_intrusive<c10d::PrefixStore>(name_of(transport), store),
          world.rank(), world.size(), {.transport = transport});
      Tensors tensors = {small_values(world.rank(), 7)};
      backend->allreduce(tensors)->wait();
      EXPECT_TRUE(
          at::equal(tensors[0], small_values(0, 7) + small_values(1, 7)));
    }
  });
}

}  // namespace
}  // namespace nfold
