// File: fetch_test.h
//
// What the tests of interception and fetching share: values, and units under
// the watch of a handler that remembers what it was asked for.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fetch/access_source.h"
#include "fetch/dispatch_interceptor.h"
#include "nfold/world.h"
#include "param/dispatch_fallback.h"

namespace nfold::testing {

using Calls = std::vector<std::string>;  // names of the units, with spaces

// Makes units whole for exactly the time of an access, and remembers each.
class RecordingHandler : public AccessHandler {
 public:
  explicit RecordingHandler(Group& group) : group_(group) {}

  void begin_exact_access(UnitRefs units) override { begin_access(units); }
  void begin_access(UnitRefs units) override {
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(failure_.empty(), failure_);
    std::string names;
    for (auto* unit : units) {
      names += (names.empty() ? "" : " ") + unit->name();
      ++pins_[unit];
    }
    calls_.push_back(names);
    ShardedUnit::begin_gather(units.vec());
    for (auto* unit : units) unit->finish_gather();
    peak_pinned_ = std::max(peak_pinned_, pins_.size());
  }

  void end_access(UnitRefs units) noexcept override {
    const std::lock_guard lock(mutex_);
    for (auto* unit : units) {
      if (--pins_.at(unit) > 0) continue;
      pins_.erase(unit);
      unit->release();
    }
  }

  void discard(UnitRefs) override {}
  std::string where() const override { return "[rank 0] step 12"; }
  Group& group() const override { return group_; }

  // From now on every access fails with this text, unless it is empty.
  void fail_with(std::string failure) { failure_ = std::move(failure); }

  // Since the last call.
  Calls take_calls() {
    const std::lock_guard lock(mutex_);
    return std::exchange(calls_, {});
  }
  std::size_t num_pinned() const { return pins_.size(); }
  std::size_t peak_pinned() const { return peak_pinned_; }

 private:
  Group& group_;
  std::mutex mutex_;
  std::string failure_;
  Calls calls_;
  std::map<ShardedUnit*, int> pins_;
  std::size_t peak_pinned_ = 0;
};

inline ShardedUnitOptions watched_options(const World& world,
                                          const std::string& name,
                                          const at::Tensor& like) {
  ShardedUnitOptions options;
  options.name = name;
  options.dtype = like.scalar_type();
  options.rank = world.rank();
  options.num_shards = world.size();
  options.groups.holders = options.groups.shard = &world.group();
  options.is_resident = false;
  options.is_trained = like.requires_grad();
  return options;
}

// Units under the watch of one handler.
class WatchedUnits {
 public:
  explicit WatchedUnits(World& world) : handler(world.group()), world_(world) {}
  ~WatchedUnits() {
    for (const auto& unit : units_) dispatch_interceptor().unwatch(*unit);
  }

  // A unit of one parameter of the same name.
  ShardedUnit& add(const std::string& name, const at::Tensor& param) {
    return add(std::vector<ParamState>{{name, {name}, {param}}},
               watched_options(world_, name, param));
  }
  // A unit of all parameters of the module.
  ShardedUnit& add(const std::string& name, const torch::nn::Module& module) {
    return add(collect_params(module),
               watched_options(world_, name, module.parameters().front()));
  }
  ShardedUnit& add(std::vector<ParamState> params,
                   const ShardedUnitOptions& options) {
    units_.push_back(std::make_unique<ShardedUnit>(std::move(params), options));
    dispatch_interceptor().watch(*units_.back(), handler);
    return *units_.back();
  }

  RecordingHandler handler;

 private:
  World& world_;
  std::vector<std::unique_ptr<ShardedUnit>> units_;
};

// The same on every rank, and no two elements alike.
inline at::Tensor values_of(at::IntArrayRef sizes, double phase = 0) {
  const auto numel = c10::multiply_integers(sizes);
  return torch::sin(torch::arange(numel, at::kFloat) * 0.37 + phase)
      .view(sizes)
      .contiguous();
}

inline at::Tensor trained_values(at::IntArrayRef sizes, double phase = 0) {
  return values_of(sizes, phase).set_requires_grad(true);
}

inline at::Tensor unsharded_twin(const at::Tensor& param) {
  return param.detach().clone().set_requires_grad(param.requires_grad());
}

// 0 and -0 differ here.
inline void expect_same_bits(const at::Tensor& a, const at::Tensor& b) {
  ASSERT_EQ(a.sizes(), b.sizes());
  ASSERT_EQ(a.scalar_type(), b.scalar_type());
  const auto bytes = [](const at::Tensor& tensor) {
    return tensor.detach().contiguous().view({-1}).view(at::kByte);
  };
  EXPECT_TRUE(torch::equal(bytes(a), bytes(b)));
}

inline bool carries_key(const at::Tensor& tensor) {
  return tensor.key_set().has(kInterceptionKey);
}

}  // namespace nfold::testing
