// File: random_timeline.h
//
// Which random numbers each operator of a recorded construction draws, although
// none is drawn while it is recorded.
//
//   nfold::RandomTimeline timeline;
//   timeline.begin();
//   auto draw = timeline.record(generator);    // before a random operator
//   timeline.end();
//   ...
//   timeline.run(draw, [&] { ...the operator, on real memory... });
//   timeline.leave_final_states();
//
// [Note: placeholders for random states]
// A recorded operator does not advance its generator, and neither
// torch::manual_seed nor Generator::set_state passes the dispatcher. So after
// each record the generator is left in a placeholder state: the engine as it
// is, plus a number that no operator ever draws (a NaN in the slot for the
// second half of a pair of normal samples) and that names the position on the
// timeline. What the next record finds tells what happened in between:
//   the placeholder left last    nothing
//   an earlier placeholder       a saved state was restored
//   no placeholder               the generator was seeded or given a state
//   a placeholder, but another   numbers were drawn without an operator: an
//   engine                       error, for they came from the wrong state
// So what a constructor reads from a generator (get_state, clone) has a meaning
// until end() only.
//
// Generators of the CPU only. The generators of torch belong to the process:
// begin() makes other threads' begin() and run() wait until end() on the same
// thread. Otherwise not thread-safe.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace nfold {

// A position on the timeline: what a generator holds between two draws.
using RandomPosition = std::size_t;

struct RandomDraw {
  std::size_t generator = 0;
  RandomPosition before = 0;
  RandomPosition after = 0;
};

struct RandomState {
  at::mt19937 engine;
  std::optional<float> next_float_normal;
  std::optional<double> next_double_normal;
};

class RandomTimeline {
 public:
  RandomTimeline() = default;
  ~RandomTimeline();
  RandomTimeline(const RandomTimeline&) = delete;
  RandomTimeline& operator=(const RandomTimeline&) = delete;

  // Watches the default generator from here on, others from their first draw.
  void begin();
  // Gives the generators back the states they were found in.
  void end();

  // Raises c10::NotImplementedError for a generator that is not the CPU's, or
  // when numbers were drawn without an operator.
  RandomDraw record(const at::Generator& generator);

  // Lets generators hold their true states, so that operators may run for
  // real, and takes up whatever they leave. Every position must be known.
  void show_true_states();
  void hide_true_states();

  // Is the state after the draw known, because it has been run?
  bool is_known(const RandomDraw& draw) const;
  // Runs `op` while the generator is in the state before the draw. The last
  // run forgets states that nothing needs any more.
  void run(const RandomDraw& draw, const std::function<void()>& op);
  void run_last(const RandomDraw& draw, const std::function<void()>& op);
  // Runs an operator whose numbers do not matter, without a trace.
  void run_aside(const at::Generator& generator,
                 const std::function<void()>& op);
  // After end() and all draws: the generators hold what they would, had the
  // operators run when they were recorded.
  void leave_final_states();

 private:
  struct Position {
    std::optional<RandomState> state;
    // The engine a generator shows along with the placeholder.
    std::shared_ptr<const at::mt19937> shown;
    std::size_t num_uses = 0;
  };
  struct Watched {
    at::Generator generator;
    RandomState found;   // when it was first seen
    RandomState hidden;  // while its true state is shown
    RandomPosition first = 0;
    RandomPosition current = 0;
  };

  std::size_t watch(const at::Generator& generator);
  RandomPosition add(std::optional<RandomState> state);
  // The position that the state of a generator stands for.
  RandomPosition position_of(const RandomState& state);
  void leave_placeholder(Watched& watched, RandomPosition position);

  std::vector<Watched> watched_;
  std::vector<Position> positions_;
  std::unique_lock<std::recursive_mutex> turn_;
};

}  // namespace nfold
