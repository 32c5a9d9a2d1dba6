// Modules of torch::nn and code of others, unchanged, whose parameters come
// and go: the answer is that of stage 0, bit for bit.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <mutex>

#include "nfold/nfold.h"
#include "testing/thread_world.h"

namespace nfold::testing {
namespace {

using Forward = std::function<at::Tensor(torch::nn::Module&, std::int64_t)>;

struct Case {
  std::string name;
  std::function<std::shared_ptr<torch::nn::Module>()> build;
  Forward loss;  // of the module and a seed
};

at::Tensor input(at::IntArrayRef sizes, std::int64_t seed) {
  std::int64_t numel = 1;
  for (const auto size : sizes) numel *= size;
  return torch::sin(torch::arange(numel, at::kFloat) * 0.7 +
                    static_cast<double>(seed))
      .view(sizes);
}

struct LstmModelImpl : torch::nn::Module {
  LstmModelImpl() {
    lstm = register_module(
        "lstm", torch::nn::LSTM(torch::nn::LSTMOptions(6, 10).num_layers(2)));
    head = register_module("head", torch::nn::Linear(10, 3));
  }
  at::Tensor loss(std::int64_t seed) {
    return head(std::get<0>(lstm(input({5, 2, 6}, seed)))).square().mean();
  }
  torch::nn::LSTM lstm{nullptr};
  torch::nn::Linear head{nullptr};
};

struct EncoderModelImpl : torch::nn::Module {
  EncoderModelImpl() {
    torch::nn::TransformerEncoderLayer layer(
        torch::nn::TransformerEncoderLayerOptions(8, 2)
            .dim_feedforward(16)
            .dropout(0.0));
    encoder =
        register_module("encoder", torch::nn::TransformerEncoder(layer, 3));
  }
  at::Tensor loss(std::int64_t seed) {
    return encoder(input({4, 2, 8}, seed)).square().mean();
  }
  torch::nn::TransformerEncoder encoder{nullptr};
};

struct ConvModelImpl : torch::nn::Module {
  ConvModelImpl() {
    conv = register_module(
        "conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 5, 3)));
    norm = register_module("norm", torch::nn::BatchNorm2d(5));
    up = register_module("up", torch::nn::ConvTranspose2d(
                                   torch::nn::ConvTranspose2dOptions(5, 2, 3)));
  }
  at::Tensor loss(std::int64_t seed) {
    return up(torch::relu(norm(conv(input({3, 2, 6, 6}, seed)))))
        .square()
        .mean();
  }
  torch::nn::Conv2d conv{nullptr};
  torch::nn::BatchNorm2d norm{nullptr};
  torch::nn::ConvTranspose2d up{nullptr};
};

// A product whose backward needs the weight again.
struct Product : torch::autograd::Function<Product> {
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::Tensor& x, const at::Tensor& weight) {
    context->save_for_backward({x, weight});
    return x.matmul(weight);
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {grads[0].matmul(saved[1].t()), saved[0].t().matmul(grads[0])};
  }
};

struct FunctionModelImpl : torch::nn::Module {
  FunctionModelImpl() {
    first = register_parameter("first", input({6, 6}, 1) * 0.3);
    second = register_parameter("second", input({6, 4}, 2) * 0.3);
  }
  at::Tensor loss(std::int64_t seed) {
    const auto hidden = Product::apply(input({3, 6}, seed), first);
    return Product::apply(torch::tanh(hidden), second).square().mean();
  }
  at::Tensor first;
  at::Tensor second;
};

// An operator of somebody else's library that uses a parameter which is not
// among its arguments. Ranks are threads, so each thread has its own.
thread_local at::Tensor hidden_weight;

at::Tensor scaled_by_hidden(const at::Tensor& x, const at::Tensor& weight) {
  return x.matmul(weight) * hidden_weight.sum();
}

TORCH_LIBRARY(nfold_modules_test, library) {
  library.def("scaled(Tensor x, Tensor weight) -> Tensor");
  library.impl("scaled",
               torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd,
                               TORCH_FN(scaled_by_hidden)));
}

struct OperatorModelImpl : torch::nn::Module {
  OperatorModelImpl() {
    weight = register_parameter("weight", input({6, 6}, 1) * 0.3);
    blocks = register_module("other", torch::nn::Linear(6, 6));
  }
  at::Tensor loss(std::int64_t seed) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("nfold_modules_test::scaled", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
    hidden_weight = blocks->weight;
    return op.call(blocks(input({3, 6}, seed)), weight).square().mean();
  }
  at::Tensor weight;
  torch::nn::Linear blocks{nullptr};
};

template <typename Model>
Case case_of(const std::string& name) {
  return {name,
          [] {
            static std::mutex mutex;
            const std::lock_guard lock(mutex);
            torch::manual_seed(7);
            return std::make_shared<Model>();
          },
          [](torch::nn::Module& module, std::int64_t seed) {
            return dynamic_cast<Model&>(module).loss(seed);
          }};
}

struct Outcome {
  std::vector<double> losses;
  std::vector<at::Tensor> params;
};

Outcome train(const Case& c, int num_ranks, int stage, std::int64_t max_live) {
  const auto config = Config::from_json_text(
      R"({"train_micro_batch_size_per_gpu": 1,
          "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
          "zero_optimization": {"stage": )" +
      std::to_string(stage) +
      R"(, "stage3_param_persistence_threshold": 0,
           "stage3_max_live_parameters": )" +
      std::to_string(max_live) + "}}");
  std::vector<Outcome> outcomes(static_cast<std::size_t>(num_ranks));
  run_ranks(num_ranks, [&](World& world) {
    auto& outcome = outcomes[static_cast<std::size_t>(world.rank())];
    Mesh mesh(world, config);
    const auto module = c.build();
    Engine engine(module, mesh, config);
    for (std::int64_t step = 0; step < 6; ++step) {
      const auto loss = c.loss(*module, step * num_ranks + world.rank());
      engine.backward(loss);
      engine.step();
      outcome.losses.push_back(loss.item<double>());
    }
    engine.unshard_model();
    for (const auto& param : module->parameters()) {
      outcome.params.push_back(param.detach());
    }
    hidden_weight = at::Tensor();
  });
  for (const auto& outcome : outcomes) {
    for (std::size_t i = 0; i < outcome.params.size(); ++i) {
      EXPECT_TRUE(torch::equal(outcome.params[i], outcomes[0].params[i]));
    }
  }
  return outcomes[0];
}

class Stage3ModulesTest : public ::testing::TestWithParam<Case> {};

TEST_P(Stage3ModulesTest, TrainsLikeStageZero) {
  for (const int num_ranks : {2, 3}) {
    const auto expected = train(GetParam(), num_ranks, 0, 1);
    for (const std::int64_t max_live : {1, 1000000000}) {
      const auto sharded = train(GetParam(), num_ranks, 3, max_live);
      EXPECT_EQ(sharded.losses, expected.losses);
      ASSERT_EQ(sharded.params.size(), expected.params.size());
      for (std::size_t i = 0; i < expected.params.size(); ++i) {
        EXPECT_TRUE(torch::equal(sharded.params[i], expected.params[i])) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modules, Stage3ModulesTest,
    ::testing::Values(case_of<LstmModelImpl>("Lstm"),
                      case_of<EncoderModelImpl>("TransformerEncoder"),
                      case_of<ConvModelImpl>("ConvAndBatchNorm"),
                      case_of<FunctionModelImpl>("CustomFunction"),
                      case_of<OperatorModelImpl>("CustomOperator")),
    [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

}  // namespace
}  // namespace nfold::testing
