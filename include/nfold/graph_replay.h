// File: nfold/graph_replay.h
//
// Runs a function over tensors again and again, on the condition that it could
// have been captured once as a device graph and replayed: the same tensors at
// the same addresses, the same operators, nothing read by the host.
//
//   nfold::GraphReplay graph;
//   for (...) {
//     // grads: the same tensors in every step, zeroed rather than dropped
//     nfold::clip_tensors_by_global_norm(grads, {.graph = &graph});
//   }
//
// This version has no CUDA, and so no graphs that would save launches. What is
// here is the contract, with a recorder for the CPU: the first call of a
// function runs it and notes the address, shape, strides and dtype of each of
// its inputs and the operators it ran; every later call runs it too, and is an
// error where a replay would have read stale memory or done something else.
// Code that passes here has what a capture needs.
//
// A graph belongs to the identity, the constants and the input shapes of a
// call: other shapes are another graph, other addresses are an error. Not
// thread-safe. Only operators that run on the calling thread are seen.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace nfold {

struct GraphCall {
  // Tells functions apart: an address that is the function's own for as long
  // as it is used, such as that of a static variable in it. Never a name, which
  // two functions may share.
  const void* identity = nullptr;
  // All tensors that the function reads or writes and did not make itself.
  std::vector<at::Tensor> inputs{};
  // All numbers that it reads: a capture has them built in.
  std::vector<double> constants{};
};

class GraphReplay {
 public:
  using Function = std::function<std::vector<at::Tensor>()>;

  GraphReplay();
  ~GraphReplay();
  GraphReplay(const GraphReplay&) = delete;
  GraphReplay& operator=(const GraphReplay&) = delete;

  // Runs the function exactly once, without recording gradients, and returns
  // its results: at the same addresses in every call, so that the next call
  // overwrites those of the last. What the caller writes there is input of
  // other graphs.
  //
  // Raises c10::ValueError, before the function runs, for an input that is not
  // where it was, naming it and how it differs; after it ran, for operators
  // other than the first time, or for one that reads a value on the host
  // (item(), a branch on a tensor), which no graph can.
  std::vector<at::Tensor> run(const GraphCall& call, const Function& function);

  // Forgets all graphs: for new tensors.
  void reset();

  std::int64_t num_graphs() const;
  // Calls that found their graph, since construction.
  std::int64_t num_replays() const { return num_replays_; }

 private:
  struct Graph;

  Graph* find(const GraphCall& call);

  std::vector<std::unique_ptr<Graph>> graphs_;
  std::int64_t num_replays_ = 0;
};

}  // namespace nfold
