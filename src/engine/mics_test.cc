// MiCS: state sharded over groups smaller than the world. The same training as
// stage 3, with the memory of its shard groups.
#include "engine/engine_test.h"
#include "testing/scoped_node_size.h"

namespace nfold::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Config mics_config(int shard_size, int accumulation = 1,
                   const std::string& more = "",
                   const std::string& optimizer = kAdamW) {
  return stage3_config(fmt::format(R"(, "mics_shard_size": {})", shard_size),
                       accumulation, more, optimizer);
}

TEST(MicsTest, OnTwoRanksFiftyStepsGiveTheBitsOfStage3) {
  const auto expected = train_tower(mics_config(-1), 2, 50);
  for (const int shard_size : {1, 2}) {
    expect_equal(train_tower(mics_config(shard_size), 2, 50), expected);
  }
}

// Among replicas gradients travel in the accumulation dtype, fp32, and so are
// not rounded to bf16 once more.
TEST(MicsTest, InBf16OneShardGroupGivesTheBitsOfStage3AndSeveralComeNear) {
  const auto run = [](int shard_size) {
    return train_tower(mics_config(shard_size, 1, kBf16, kSgd), 2,
                       /*num_steps=*/3);
  };
  const auto expected = run(-1);
  expect_equal(run(2), expected);
  expect_near(run(1), expected, 2e-2);
}

TEST(MicsTest, WithAccumulationAndMoreRanksItAgreesUpToRounding) {
  for (const int accumulation : {1, 3}) {
    for (const int num_ranks : {3, 4, 5, 6}) {
      const auto expected =
          train_tower(mics_config(-1, accumulation), num_ranks);
      for (int shard_size = 1; shard_size <= num_ranks; ++shard_size) {
        if (num_ranks % shard_size != 0) continue;
        const auto actual =
            train_tower(mics_config(shard_size, accumulation), num_ranks);
        expect_near(actual, expected, 1e-5);
        if (shard_size == num_ranks) expect_equal(actual, expected);
      }
    }
  }
}

TEST(MicsTest, FiftyStepsOnFourAndEightRanksStayNearStage3) {
  for (const int num_ranks : {4, 8}) {
    const auto expected = train_tower(mics_config(-1), num_ranks, 50);
    for (int shard_size = 1; shard_size <= num_ranks; shard_size *= 2) {
      const auto actual = train_tower(mics_config(shard_size), num_ranks, 50);
      expect_near(actual, expected, 1e-5);
    }
  }
}

// Shard groups that span nodes.
TEST(MicsTest, GathersInTwoHopsGiveTheBitsOfFlatOnes) {
  for (const auto& [num_ranks, shard_size, node_size] :
       {std::tuple{4, 4, 2}, {6, 6, 2}, {6, 6, 3}, {8, 4, 2}}) {
    const ScopedNodeSize node(node_size);
    const auto flat = mics_config(shard_size, 2);
    auto hops = flat;
    hops.zero_optimization.mics_hierarchical_params_gather = true;
    expect_equal(train_tower(hops, num_ranks), train_tower(flat, num_ranks));
  }
}

TEST(MicsTest, BetweenNodesGathersInTwoHopsSendEachShardOnce) {
  const ScopedNodeSize node(2);
  auto config = mics_config(4);
  config.zero_optimization.mics_hierarchical_params_gather = true;
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(24);
    Engine engine(model, mesh, config);
    const auto gather = static_cast<std::size_t>(Collective::kAllGather);
    const auto before = mesh.shard_group().counts()[gather].bytes;
    model->loss(world.rank());
    EXPECT_EQ(mesh.shard_group().counts()[gather].bytes, before);
    const auto inter = mesh.mics_inter_node()->counts()[gather];
    const auto intra = mesh.mics_intra_node()->counts()[gather];
    EXPECT_GT(inter.calls, 0);
    EXPECT_EQ(inter.calls, intra.calls);
    // A quarter of the model between nodes, half of it within.
    EXPECT_EQ(intra.bytes, 2 * inter.bytes);
    EXPECT_GE(inter.bytes, numel_of(*model) * 4 / 4);
    EXPECT_LE(inter.bytes, 1.1 * numel_of(*model) * 4 / 4);
  });
}

TEST(MicsTest, TwoHopsInsideOneNodeAreAnError) {
  auto config = mics_config(2);
  config.zero_optimization.mics_hierarchical_params_gather = true;
  EXPECT_THAT(error_of([&] { on_ranks(4, config, [](World&, Mesh&) {}); }),
              HasSubstr("node"));
}

TEST(MicsTest, StateIsThatOfTheShardGroup) {
  for (const int shard_size : {1, 2, 4}) {
    const auto config = mics_config(shard_size);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      Tower model(128);
      const auto numel = static_cast<double>(numel_of(*model));
      Engine engine(model, mesh, config);
      train_step(engine, model->loss(world.rank()));
      const auto memory = engine.memory();
      const auto held =
          memory.params_bytes + memory.grads_bytes + memory.optimizer_bytes;
      EXPECT_LE(held, 1.02 * 16 * numel / shard_size);
      EXPECT_GE(held, 16 * numel / shard_size);
    });
  }
}

// Parameters and micro steps stay inside of the shard groups; only the
// boundary goes to the replicas.
TEST(MicsTest, ReplicasMeetAtTheBoundaryOnly) {
  const auto config = mics_config(2, 3);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    ASSERT_NE(mesh.replica_group(), nullptr);
    EXPECT_EQ(
        mesh.shard_group().global_ranks(),
        world.rank() < 2 ? std::vector<int>({0, 1}) : std::vector<int>({2, 3}));
    EXPECT_EQ(mesh.replica_group()->global_ranks(),
              std::vector<int>({world.rank() % 2, world.rank() % 2 + 2}));
    Tower model(24);
    Engine engine(model, mesh, config);
    const auto of_world = mesh.data_parallel().counts();
    const auto bytes_to_replicas = [&] {
      std::int64_t bytes = 0;
      for (const auto& count : mesh.replica_group()->counts()) {
        bytes += count.bytes;
      }
      return bytes;
    };
    std::int64_t shard_bytes = 0;
    for (int micro = 0; micro < 3; ++micro) {
      EXPECT_EQ(bytes_to_replicas(), 0);
      engine.backward(model->loss(micro * 4 + world.rank()));
      if (micro < 2) engine.step();
    }
    const auto report = engine.step();
    shard_bytes = engine.memory().grads_bytes;
    // An all-reduce of the shard among two.
    EXPECT_EQ(bytes_to_replicas(), shard_bytes);
    EXPECT_TRUE(report.is_boundary);
    // Reduced inside of a shard group, and yet one number everywhere.
    auto norm = torch::full({1}, report.grad_norm, at::kDouble);
    all_reduce(world.group(), norm, ReduceOp::kMax).wait();
    EXPECT_EQ(norm.item<double>(), report.grad_norm);
    for (int i = 0; i < kNumCollectives; ++i) {
      EXPECT_EQ(mesh.data_parallel().counts()[i].bytes, of_world[i].bytes);
    }
  });
}

TEST(MicsTest, GradientsMayBeReadAndAddedToBeforeTheStep) {
  const auto gradients_of = [&](int shard_size) {
    std::vector<at::Tensor> gradients;
    const auto config = mics_config(shard_size, 1, "", kSgd);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      Vectors model(std::vector<std::int64_t>{0, 1, 2, 7, 8, 1023});
      Engine engine(model, mesh, config);
      for (int round = 0; round < 2; ++round) {
        engine.backward(model->loss(round * 4 + world.rank()));
        for (const auto& weight : model->weights) {
          const auto grad = safe_get_full_grad(engine, weight);
          EXPECT_TRUE(same_bits(grad, safe_get_full_grad(engine, weight)));
          if (world.rank() == 0) gradients.push_back(grad);
        }
      }
      const auto& last = model->weights.back();
      safe_set_full_grad(engine, last, torch::ones({1023}));
      engine.step();
      const auto value = safe_get_full_fp32_param(engine, last);
      if (world.rank() == 0) gradients.push_back(value);
    });
    return gradients;
  };
  const auto expected = gradients_of(-1);
  for (const int shard_size : {1, 2, 4}) {
    const auto actual = gradients_of(shard_size);
    ASSERT_EQ(actual.size(), expected.size());
    // Eighths: no order of sums rounds.
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(same_bits(actual[i], expected[i])) << i;
    }
  }
}

TEST(MicsTest, PartitionGradientsSumsOverReplicasToo) {
  const auto config = mics_config(2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Vectors model(std::vector<std::int64_t>{5, 40});
    Engine engine(model, mesh, config);
    model->loss(world.rank()).backward();
    std::vector<at::Tensor> buffers(2);
    partition_gradients(engine, model->weights, buffers);
    double sum = 0;
    for (const auto& buffer : buffers) sum += buffer.sum().item<double>();
    auto total = torch::full({1}, sum, at::kDouble);
    all_reduce(mesh.shard_group(), total).wait();
    double expected = 0;
    for (std::size_t i = 0; i < 2; ++i) {
      expected += 4 * VectorsImpl::mean_gradient(i, i == 0 ? 5 : 40, 0, 4)
                          .sum()
                          .item<double>();
    }
    EXPECT_NEAR(total.item<double>(), expected, 1e-5);
  });
}

TEST(MicsTest, ScopesReachAllReplicas) {
  const auto config = mics_config(2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(16);
    Engine engine(model, mesh, config);
    {
      const GatheredParameters scope(model->head->weight, {.modifier_rank = 3});
      torch::NoGradGuard no_grad;
      model->head->weight.fill_(world.rank());
    }
    EXPECT_EQ(model->head->weight.mean().item<float>(), 3);
    EXPECT_THAT(error_of([&] {
                  GatheredParameters scope(model->head->weight);
                  torch::NoGradGuard no_grad;
                  if (world.rank() == 2) model->head->weight.fill_(9);
                  scope.close();
                }),
                AllOf(HasSubstr("rank 2"), HasSubstr("head.weight")));
    EXPECT_EQ(model->head->weight.mean().item<float>(), 3);
    train_step(engine, model->loss(world.rank()));
  });
}

TEST(MicsTest, AForwardMayBeRepeated) {
  const auto norms_of = [](int shard_size) {
    std::vector<double> norms;
    const auto config = mics_config(shard_size);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      Tower model(24);
      Engine engine(model, mesh, config);
      for (int step = 0; step < 3; ++step) {
        const auto seed = step * 8 + world.rank();
        const auto report =
            train_step(engine, model->loss(seed) + model->loss(seed + 4));
        if (world.rank() == 0) norms.push_back(report.grad_norm);
      }
    });
    return norms;
  };
  const auto expected = norms_of(-1);
  for (const int shard_size : {1, 2, 4}) {
    const auto actual = norms_of(shard_size);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(actual[i], expected[i], 1e-5 * expected[i]) << shard_size;
    }
  }
}

TEST(MicsTest, InitGivesEveryReplicaTheValuesOfRank0) {
  const auto config = mics_config(2);
  for (const bool from_rank_0 : {false, true}) {
    torch::manual_seed(1);
    torch::nn::Linear expected(300, 40);
    on_ranks(4, config, [&](World& world, Mesh& mesh) {
      auto model = init(
          mesh, config,
          [&] {
            torch::manual_seed(static_cast<std::uint64_t>(1 + world.rank()));
            return torch::nn::Linear(300, 40);
          },
          {.from_rank_0 = from_rank_0});
      Engine engine(model, mesh, config);
      EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, model->weight),
                            expected->weight.detach()));
    });
  }
}

TEST(MicsTest, AnOverflowOnOneReplicaSkipsTheStepOnAll) {
  const auto config = mics_config(2);
  on_ranks(4, config, [&](World& world, Mesh& mesh) {
    Tower model(16);
    Engine engine(model, mesh, config);
    const auto before = safe_get_full_fp32_param(engine, model->head->weight);
    const auto scale = world.rank() == 3 ? INFINITY : 1.0f;
    const auto report = train_step(engine, model->loss(0) * scale);
    EXPECT_TRUE(report.is_skipped);
    EXPECT_THAT(report.non_finite, HasSubstr("rank 3"));
    EXPECT_TRUE(same_bits(safe_get_full_fp32_param(engine, model->head->weight),
                          before));
    EXPECT_FALSE(train_step(engine, model->loss(0)).is_skipped);
  });
}

TEST(MicsTest, SizesThatDoNotDivideAndOtherStagesAreErrors) {
  const auto error_on = [](int num_ranks, int shard_size) {
    return error_of([&] {
      on_ranks(num_ranks, mics_config(shard_size), [](World&, Mesh&) {});
    });
  };
  EXPECT_THAT(error_on(3, 2), HasSubstr("3 is not divisible by 2"));
  EXPECT_THAT(error_on(4, 8), HasSubstr("4 is not divisible by 8"));
  EXPECT_THAT(error_of([] {
                config_of({.stage = 2, .zero = R"(, "mics_shard_size": 2)"});
              }),
              AllOf(HasSubstr("mics_shard_size"), HasSubstr("stage 3")));
}

// The text of the error on each of four ranks, two by two in shard groups, of
// which some step after one micro step and the others after two.
void expect_uneven_steps_end(const std::vector<int>& quick_ranks,
                             const ::testing::Matcher<std::string>& matches) {
  const auto config = mics_config(2, 2);
  auto options = kOverGloo;
  options.timeout = std::chrono::minutes(5);
  options.stall_check = std::chrono::milliseconds(300);
  const auto start = std::chrono::steady_clock::now();
  on_ranks(
      4, config,
      [&](World& world, Mesh& mesh) {
        auto own_config = config;
        if (std::count(quick_ranks.begin(), quick_ranks.end(), world.rank())) {
          own_config.gradient_accumulation_steps = 1;
        }
        Tower model(24);
        Engine engine(model, mesh, own_config);
        EXPECT_THAT(error_of([&] {
                      for (;;) train_step(engine, model->loss(world.rank()));
                    }),
                    matches);
      },
      options);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

// Ranks 0 and 1 see what each other does; the others lose them.
TEST(MicsTest, ARankThatSkipsAMicroStepIsAnErrorOnAllThatNamesRankAndStep) {
  expect_uneven_steps_end({0},
                          AllOf(HasSubstr("(step 1, micro step 1, gradient"),
                                HasSubstr("rank 0 entered all_gather"),
                                HasSubstr("rank 1 entered reduce_scatter")));
}

// Rank 0 waits among replicas for rank 2, that in its shard group for rank 3,
// that among replicas for rank 1, and that in its shard group for rank 0.
TEST(MicsTest, WaitsThatCrossGroupsAreAnErrorOnAllThatNamesStepAndUnit) {
  expect_uneven_steps_end(
      {0, 3},
      AllOf(HasSubstr("ranks wait for each other"),
            HasSubstr("\n  rank 0 has waited"), HasSubstr("rank 1 has waited"),
            HasSubstr("rank 2 has waited"), HasSubstr("rank 3 has waited"),
            HasSubstr("in group 'mics_replica', all_reduce #"),
            HasSubstr("(step 1, micro step 1, gradients of "),
            HasSubstr(" over replicas), which rank 1 has not entered"),
            HasSubstr("in group 'mics_shard', reduce_scatter #"),
            HasSubstr("(step 1, micro step 1, gradient bucket 0 of "
                      "head.weight ... head.bias), which rank 0 has not "
                      "entered")));
}

}  // namespace
}  // namespace nfold::testing
