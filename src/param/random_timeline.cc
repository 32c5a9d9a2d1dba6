#include "param/random_timeline.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <exception>
#include <utility>

namespace nfold {
namespace {

// The upper half of a quiet NaN with a payload that no arithmetic makes; the
// lower half is the position.
constexpr std::uint64_t kPlaceholderTag = 0x7ff8'6e66'0000'0000;
constexpr std::uint64_t kTagMask = 0xffff'ffff'0000'0000;

double placeholder_of(RandomPosition position) {
  return std::bit_cast<double>(kPlaceholderTag | position);
}

std::optional<RandomPosition> placeholder_in(const RandomState& state) {
  if (!state.next_double_normal) return std::nullopt;
  const auto bits = std::bit_cast<std::uint64_t>(*state.next_double_normal);
  if ((bits & kTagMask) != kPlaceholderTag) return std::nullopt;
  return bits & ~kTagMask;
}

bool are_equal(const at::mt19937& a, const at::mt19937& b) {
  const at::mt19937_data_pod left = a.data();
  const at::mt19937_data_pod right = b.data();
  return left.seed_ == right.seed_ && left.left_ == right.left_ &&
         left.next_ == right.next_ && left.state_ == right.state_;
}

bool are_equal(const RandomState& a, const RandomState& b) {
  return are_equal(a.engine, b.engine) &&
         a.next_float_normal == b.next_float_normal &&
         a.next_double_normal == b.next_double_normal;
}

at::CPUGeneratorImpl& cpu(const at::Generator& generator) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      generator.device().is_cpu(), "deferred construction: random numbers of ",
      generator.device(),
      " cannot be recorded, only those of the CPU; initialise on the CPU, or "
      "build this module outside of nfold::init");
  return *static_cast<at::CPUGeneratorImpl*>(
      generator.unsafeGetGeneratorImpl());
}

RandomState read(const at::Generator& generator) {
  at::CPUGeneratorImpl& impl = cpu(generator);
  std::lock_guard lock(impl.mutex_);
  return {impl.engine(), impl.next_float_normal_sample(),
          impl.next_double_normal_sample()};
}

void write(const at::Generator& generator, const RandomState& state) {
  at::CPUGeneratorImpl& impl = cpu(generator);
  std::lock_guard lock(impl.mutex_);
  impl.set_engine(state.engine);
  impl.set_next_float_normal_sample(state.next_float_normal);
  impl.set_next_double_normal_sample(state.next_double_normal);
}

// Held by whoever has put something into a generator that others must not
// see. Recursive, for a construction that reads a value replays while it is
// recorded.
std::recursive_mutex& turn_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

// Runs `op` with the generator in this state, returns the one it leaves.
// Whatever the generator holds otherwise, maybe a placeholder, stays.
RandomState run_from(const at::Generator& generator, const RandomState& state,
                     const std::function<void()>& op) {
  std::lock_guard turn(turn_mutex());
  const RandomState kept = read(generator);
  write(generator, state);
  try {
    op();
  } catch (...) {
    write(generator, kept);
    throw;
  }
  RandomState result = read(generator);
  write(generator, kept);
  return result;
}

}  // namespace

RandomTimeline::~RandomTimeline() {
  if (!turn_.owns_lock()) return;
  try {
    end();
  } catch (const c10::Error&) {
    // The construction has failed already, and that error is the one to tell.
  }
}

void RandomTimeline::begin() {
  turn_ = std::unique_lock(turn_mutex());
  Watched& watched = watched_[watch(at::detail::getDefaultCPUGenerator())];
  leave_placeholder(watched, watched.current);
}

void RandomTimeline::end() {
  // All are given back even where one was misused.
  std::exception_ptr error;
  for (Watched& watched : watched_) {
    try {
      watched.current = position_of(read(watched.generator));
      ++positions_[watched.current].num_uses;
    } catch (const c10::Error&) {
      error = std::current_exception();
    }
    write(watched.generator, watched.found);
  }
  turn_.unlock();
  if (error) std::rethrow_exception(error);
}

RandomDraw RandomTimeline::record(const at::Generator& generator) {
  const std::size_t index = watch(generator);
  const RandomPosition before = position_of(read(generator));
  const RandomPosition after = add(std::nullopt);
  ++positions_[before].num_uses;
  leave_placeholder(watched_[index], after);
  return {index, before, after};
}

void RandomTimeline::show_true_states() {
  for (Watched& watched : watched_) {
    watched.current = position_of(read(watched.generator));
    TORCH_INTERNAL_ASSERT(positions_[watched.current].state);
    watched.hidden = read(watched.generator);
    write(watched.generator, *positions_[watched.current].state);
  }
}

void RandomTimeline::hide_true_states() {
  for (Watched& watched : watched_) {
    const RandomState left = read(watched.generator);
    if (are_equal(left, *positions_[watched.current].state)) {
      write(watched.generator, watched.hidden);
    } else {
      leave_placeholder(watched, position_of(left));
    }
  }
}

bool RandomTimeline::is_known(const RandomDraw& draw) const {
  return positions_[draw.after].state.has_value();
}

void RandomTimeline::run(const RandomDraw& draw,
                         const std::function<void()>& op) {
  const at::Generator& generator = watched_[draw.generator].generator;
  const auto& before = positions_[draw.before].state;
  TORCH_INTERNAL_ASSERT(before, "a random operator ran out of order");
  const RandomState after = run_from(generator, *before, op);
  positions_[draw.after].state = after;
}

void RandomTimeline::run_last(const RandomDraw& draw,
                              const std::function<void()>& op) {
  run(draw, op);
  Position& before = positions_[draw.before];
  if (--before.num_uses == 0) before.state.reset();
}

void RandomTimeline::run_aside(const at::Generator& generator,
                               const std::function<void()>& op) {
  run_from(generator, RandomState(), op);
}

void RandomTimeline::leave_final_states() {
  std::lock_guard turn(turn_mutex());
  for (const Watched& watched : watched_) {
    // Untouched by the construction: whoever has drawn since then may go on.
    if (watched.current == watched.first) continue;
    const auto& state = positions_[watched.current].state;
    TORCH_INTERNAL_ASSERT(state, "a random operator has not run");
    write(watched.generator, *state);
  }
}

std::size_t RandomTimeline::watch(const at::Generator& generator) {
  const auto found = std::find_if(
      watched_.begin(), watched_.end(),
      [&](const Watched& watched) { return watched.generator == generator; });
  if (found != watched_.end()) return found - watched_.begin();
  const RandomState state = read(generator);
  const RandomPosition position = position_of(state);
  watched_.push_back({generator, state, state, position, position});
  return watched_.size() - 1;
}

RandomPosition RandomTimeline::add(std::optional<RandomState> state) {
  positions_.push_back({std::move(state), nullptr, 0});
  return positions_.size() - 1;
}

RandomPosition RandomTimeline::position_of(const RandomState& state) {
  const auto placeholder = placeholder_in(state);
  if (!placeholder) return add(state);
  const bool is_ours = *placeholder < positions_.size() &&
                       positions_[*placeholder].shown != nullptr;
  TORCH_CHECK_NOT_IMPLEMENTED(
      is_ours && are_equal(*positions_[*placeholder].shown, state.engine),
      "deferred construction: random numbers were drawn from a generator "
      "without an operator while constructors were recorded, so they are not "
      "those of the eager construction; draw them with tensor operators, or "
      "inside of a scope of nfold::ConstructionPause");
  return *placeholder;
}

void RandomTimeline::leave_placeholder(Watched& watched,
                                       RandomPosition position) {
  RandomState state = read(watched.generator);
  Position& target = positions_[position];
  const auto& last = positions_[watched.current].shown;
  target.shown = last && are_equal(*last, state.engine)
                     ? last
                     : std::make_shared<const at::mt19937>(state.engine);
  state.next_double_normal = placeholder_of(position);
  write(watched.generator, state);
  watched.current = position;
}

}  // namespace nfold
