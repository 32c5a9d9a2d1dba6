// Works and errors of the backend; two ranks show them.
#include "comm/c10d_work.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "comm/c10d_call.h"
#include "comm/c10d_pair_test.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(C10dWork, TellsWhenItIsDone) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors tensors = {at::ones({4})};
    c10::intrusive_ptr<c10d::Work> work;
    if (world.rank() == 0) {
      work = backend->allreduce(tensors);
      // Rank 1 issues only after this.
      EXPECT_FALSE(work->isCompleted());
      EXPECT_THROW(work->result(), c10::Error);
      EXPECT_THAT(text_of<c10::DistBackendError>(
                      [&] { work->wait(std::chrono::milliseconds(1)); }),
                  HasSubstr("nfold:allreduce was not done after 1 ms"));
    }
    barrier(world.group()).wait();
    if (world.rank() == 1) work = backend->allreduce(tensors);
    EXPECT_TRUE(work->wait(std::chrono::seconds(30)));
    EXPECT_TRUE(work->isCompleted());
    EXPECT_TRUE(work->isSuccess());
    EXPECT_EQ(work->exception(), nullptr);
    EXPECT_TRUE(work->getFuture()->completed());
    EXPECT_EQ(work->retrieveOpType(), c10d::OpType::ALLREDUCE);
    ASSERT_EQ(work->result().size(), 1U);
    EXPECT_TRUE(work->result()[0].is_same(tensors[0]));
  });
}

TEST(C10dWork, FutureHasTheResultAndMayIssueMore) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors tensors = {strided(at::ones({4}))};
    Tensors second = {at::ones({4})};
    auto sum = backend->allreduce(tensors)->getFuture()->then(
        [&](c10::ivalue::Future& done) {
          second[0].add_(done.value().toTensorVector().at(0));
          backend->allreduce(second);
          return c10::IValue(second[0]);
        },
        c10::TensorType::get());
    sum->wait();
    backend->barrier()->wait();
    EXPECT_TRUE(at::equal(sum->value().toTensor(), at::full({4}, 6.0F)));
  });
}

TEST(C10dWork, MayBeDropped) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    auto tensor = strided(at::ones({4}));
    {
      Tensors tensors = {tensor};
      backend->allreduce(tensors);
    }
    backend->barrier()->wait();
    EXPECT_TRUE(at::equal(tensor, at::full({4}, 2.0F)));
  });
}

TEST(C10dWork, ACallbackThatRaisesEndsNothing) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors tensors = {at::ones({4})};
    if (world.rank() == 0) {
      // Added before rank 1 lets it complete.
      backend->allreduce(tensors)->getFuture()->addCallback(
          [](c10::ivalue::Future&) { throw std::runtime_error("oops"); });
    }
    barrier(world.group()).wait();
    if (world.rank() == 1) backend->allreduce(tensors);
    backend->barrier()->wait();
    EXPECT_EQ(tensors[0][0].item<int>(), 2);
  });
}

TEST(C10dErrors, NameTheRankThatDiverged) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors tensors = {at::ones({4})};
    auto work = world.rank() == 0 ? backend->allreduce(tensors)
                                  : backend->broadcast(tensors);
    const auto text = text_of<c10::DistBackendError>([&] { work->wait(); });
    EXPECT_THAT(
        text,
        AllOf(HasSubstr(c10::str("[rank ", world.rank(), "] group 'c10d'")),
              HasSubstr("all_reduce #0 of 4 float32"),
              HasSubstr("broadcast #0 of 4 float32")));
    EXPECT_TRUE(work->isCompleted());
    EXPECT_FALSE(work->isSuccess());
    ASSERT_NE(work->exception(), nullptr);
    EXPECT_TRUE(work->getFuture()->hasError());
    // The group stays failed.
    EXPECT_THROW(backend->barrier(), c10::DistBackendError);
  });
}

TEST(C10dErrors, NameBothRanksWhosePartsDoNotMatch) {
  run_ranks(3, [](World& world) {
    const auto backend = make_own_backend(world);
    std::vector<std::int64_t> to_peers = {1, 1, 1};
    std::vector<std::int64_t> from_peers = {1, 1, 1};
    if (world.rank() == 2) to_peers = {1, 3, 1};
    auto input = at::ones({world.rank() == 2 ? 5 : 3, 2});
    auto output = at::ones({3, 2});
    auto work = backend->alltoall_base(output, input, from_peers, to_peers, {});
    EXPECT_THAT(
        text_of<c10::DistBackendError>([&] { work->wait(); }),
        AllOf(HasSubstr("all_to_all #0 of float32 in 3 tensors"),
              HasSubstr("rank 2 sends 6 elements to rank 1, which expects 2")));
  });
}

TEST(C10dErrors, SomeRanksWithSplitSizesAndSomeWithout) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    std::vector<std::int64_t> sizes = {1, 1};
    if (world.rank() == 1) sizes.clear();
    auto input = at::ones({2});
    auto output = at::ones({2});
    auto work = backend->alltoall_base(output, input, sizes, sizes, {});
    EXPECT_THAT(text_of<c10::DistBackendError>([&] { work->wait(); }),
                AllOf(HasSubstr("all_to_all #0 of 2 float32"),
                      HasSubstr("all_to_all #0 of float32 in 2 tensors")));
  });
}

TEST(C10dErrors, OfArgumentsComeBeforeAnythingIsSent) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    auto four = at::ones({4});
    auto five = at::ones({5});
    Tensors one = {four};
    Tensors two = {four, five};
    Tensors mixed = {four, at::ones({4}, at::kLong)};
    Tensors sparse = {at::eye(2).to_sparse()};
    Tensors undefined = {at::Tensor()};
    TensorLists short_list = {{four}};
    TensorLists uneven_list = {{four, five}};
    std::vector<std::int64_t> wrong_sum = {1, 2};
    std::vector<std::int64_t> negative = {5, -1};
    const auto expect_value_error = [&](const char* text, auto&& call) {
      EXPECT_THAT(
          text_of<c10::ValueError>(call),
          AllOf(HasSubstr(c10::str("[rank ", world.rank(), "] group 'c10d': ")),
                HasSubstr(text)));
    };
    expect_value_error("expected one tensor but found 2",
                       [&] { backend->allreduce(two); });
    expect_value_error("dense", [&] { backend->allreduce(sparse); });
    expect_value_error("undefined", [&] { backend->allreduce(undefined); });
    expect_value_error("one dtype",
                       [&] { backend->allreduce_coalesced(mixed); });
    expect_value_error("one tensor for each of 2 ranks but found 1",
                       [&] { backend->allgather(short_list, one); });
    expect_value_error("expected 4 elements for each rank but found 5",
                       [&] { backend->allgather(uneven_list, one); });
    expect_value_error("expected 8 elements but found 5",
                       [&] { backend->_allgather_base(five, four); });
    expect_value_error("expected 8 elements but found 5",
                       [&] { backend->_reduce_scatter_base(four, five); });
    expect_value_error("0 to 1, but found 2",
                       [&] { backend->broadcast(one, {.rootRank = 2}); });
    expect_value_error("lists only on rank", [&] {
      backend->gather(short_list, one, {.rootRank = 1 - world.rank()});
    });
    expect_value_error("with a sum of 4", [&] {
      auto output = at::zeros({4});
      backend->alltoall_base(output, four, wrong_sum, wrong_sum, {});
    });
    expect_value_error("a split size is -1", [&] {
      auto output = at::zeros({4});
      backend->alltoall_base(output, four, negative, negative, {});
    });
    backend->barrier()->wait();
  });
}

TEST(C10dErrors, NameWhatThereIsInsteadOfWhatThereIsNot) {
  run_ranks(2, [](World& world) {
    const auto backend = make_own_backend(world);
    Tensors tensors = {at::ones({4})};
    EXPECT_THAT(
        text_of<c10::NotImplementedError>([&] {
          backend->allreduce(tensors, {.reduceOp = c10d::ReduceOp::PRODUCT});
        }),
        AllOf(HasSubstr("group 'c10d': nfold:allreduce"), HasSubstr("PRODUCT"),
              HasSubstr("use SUM, AVG, MIN or MAX")));
    const auto peer = 1 - world.rank();
    for (const auto& text : {text_of<c10::NotImplementedError>(
                                 [&] { backend->send(tensors, peer, 0); }),
                             text_of<c10::NotImplementedError>(
                                 [&] { backend->recv(tensors, peer, 0); }),
                             text_of<c10::NotImplementedError>([&] {
                               backend->recvAnysource(tensors, 0);
                             })}) {
      EXPECT_THAT(text, HasSubstr("use alltoall_base with split sizes"));
    }
    backend->barrier()->wait();
  });
}

}  // namespace
}  // namespace nfold
