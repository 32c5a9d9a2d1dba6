// Trains one linear layer for two steps in a world of one process. Exits with
// 1 when something is not as it should be.
#include <nfold/c10d_backend.h>
#include <nfold/collectives.h>
#include <nfold/engine.h>
#include <nfold/errors.h>
#include <nfold/world.h>
#include <torch/torch.h>

#include <iostream>
#include <vector>

namespace {

int run() {
  auto world = nfold::World::from_environment();
  auto tensor = torch::full({4}, 2.0F);
  nfold::all_reduce(world.group(), tensor).wait();
  if (world.size() != 1 || tensor.sum().item<float>() != 8.0F) {
    std::cerr << "expected a world of one, in which a sum changes nothing\n";
    return 1;
  }
  const auto backend =
      nfold::make_c10d_backend(world.new_group("c10d", {world.rank()}));
  std::vector<at::Tensor> tensors = {tensor};
  if (!backend->allreduce(tensors)->wait() || tensor.sum().item<int>() != 8) {
    std::cerr << "expected a c10d::Backend to change nothing either\n";
    return 1;
  }

  const auto config = nfold::Config::from_json_text(R"({
    "train_batch_size": 4,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "zero_optimization": {"stage": 2}
  })");
  nfold::Mesh mesh(world, config);
  torch::nn::Linear model(3, 1);
  nfold::Engine engine(model, mesh, config);
  const auto input = torch::ones({4, 3});
  float first_loss = 0;
  for (int step = 0; step < 2; ++step) {
    const auto loss = model->forward(input).pow(2).mean();
    if (step == 0) {
      first_loss = loss.item<float>();
    } else if (!(loss.item<float>() < first_loss)) {
      std::cerr << "expected the loss to fall, found " << loss << "\n";
      return 1;
    }
    engine.backward(loss);
    engine.step();
  }
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::cerr << nfold::message_of(error) << "\n";
    return 1;
  }
}
