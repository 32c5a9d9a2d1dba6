#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <set>
#include <utility>

#include "base/log.h"
#include "fetch/dispatch_interceptor.h"
#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "nfold/gather.h"
#include "param/deferred_construction.h"

namespace nfold {

// What GatheredParameters is while it lives.
class GatherScope {
 public:
  virtual ~GatherScope() = default;
  virtual void close() = 0;
};

namespace {

// Of parameters of an engine.
class ShardedScope : public GatherScope {
 public:
  // A unit of the scope.
  struct Held {
    ShardedUnit* unit = nullptr;
    std::vector<std::size_t> params;      // those that were asked for
    std::vector<std::uint32_t> versions;  // of all parameters, on entry
  };

  ShardedScope(AccessHandler& handler, std::vector<Held> held,
               GatherOptions options)
      : handler_(handler), held_(std::move(held)), options_(options) {
    for (auto& held : held_) units_.push_back(held.unit);
    handler_.begin_exact_access(units_);
    // Whatever happens in the scope, the other ranks must not see it yet.
    for (auto* unit : units_) unit->unshare();
    for (auto& held : held_) {
      dispatch_interceptor().set_writable(*held.unit, true);
      for (const auto& param : held.unit->params()) {
        held.versions.push_back(param.tensor()._version());
      }
    }
  }

  void close() override {
    std::string problem;
    std::exception_ptr failure;
    try {
      problem = forbidden_change();
      if (problem.empty() && options_.modifier_rank) publish();
      if (!problem.empty()) undo();
    } catch (...) {
      failure = std::current_exception();
    }
    for (auto* unit : units_) {
      dispatch_interceptor().set_writable(*unit, false);
    }
    handler_.end_access(units_);
    // What was written without our notice is gone now. Operators use what
    // travels, whether a scope was open in between or not.
    const bool has_codec = std::any_of(
        units_.begin(), units_.end(),
        [](const auto* unit) { return unit->options().codec.has_value(); });
    if (!options_.modifier_rank || !problem.empty() || has_codec) {
      handler_.discard(units_);
    }
    if (failure) std::rethrow_exception(failure);
    TORCH_CHECK_VALUE(problem.empty(), problem);
  }

 private:
  bool may_change(const Held& held, std::size_t param) const {
    return options_.modifier_rank.has_value() &&
           std::count(held.params.begin(), held.params.end(), param) > 0;
  }

  // The first change on any rank that the scope does not permit, in words;
  // the same on all ranks.
  std::string forbidden_change() {
    for (auto* unit : units_) dispatch_interceptor().verify(*unit);
    std::vector<std::string> names;
    std::int64_t first = -1;
    for (const auto& held : held_) {
      for (std::size_t i = 0; i < held.versions.size(); ++i) {
        const auto& param = held.unit->params()[i];
        const bool is_changed = param.tensor()._version() != held.versions[i];
        if (is_changed && first < 0 && !may_change(held, i)) {
          first = static_cast<std::int64_t>(names.size());
        }
        names.push_back(param.name);
      }
    }
    auto& group = handler_.group();
    auto found = at::full({group.size()}, -1, at::kLong);
    auto own = found.narrow(0, group.rank(), 1);
    own.fill_(first);
    all_gather(group, found, own).wait();
    std::string problem;
    for (int rank = 0; rank < group.size(); ++rank) {
      const auto index = found[rank].item<std::int64_t>();
      if (index < 0) {
        unchanged_.insert(group.global_ranks()[static_cast<std::size_t>(rank)]);
      }
      if (index < 0 || !problem.empty()) continue;
      problem =
          handler_.where() + ": rank " +
          std::to_string(group.global_ranks()[static_cast<std::size_t>(rank)]) +
          " changed " + names[static_cast<std::size_t>(index)] +
          " inside GatheredParameters " +
          (options_.modifier_rank ? "that was not opened for it"
                                  : "without a modifier_rank") +
          ". Pass the parameter and modifier_rank = the rank whose "
          "values count.";
    }
    if (problem.empty()) return problem;
    return problem + (!unchanged_.empty()
                          ? " The change was undone."
                          : " All ranks changed it; where it is not sharded "
                            "at rest the change stays.");
  }

  void publish() {
    for (const auto& held : held_) {
      auto& group = *held.unit->options().groups.holders;
      for (const auto param : held.params) {
        const auto range = held.unit->layout().param_range(param);
        if (range.numel == 0) continue;
        broadcast(group, held.unit->full().narrow(0, range.begin, range.numel),
                  *options_.modifier_rank)
            .wait();
      }
      held.unit->publish_full(held.params);
    }
  }

  // Sharded units are fetched anew when they are used; resident ones have the
  // same values on every rank that did not touch them.
  void undo() {
    for (auto* unit : units_) {
      if (!unit->options().is_resident) continue;
      auto& group = *unit->options().groups.holders;
      const auto& ranks = group.global_ranks();
      const auto source =
          std::find_if(ranks.begin(), ranks.end(),
                       [&](int rank) { return unchanged_.contains(rank); });
      if (source == ranks.end()) continue;
      broadcast(group, unit->full(), static_cast<int>(source - ranks.begin()))
          .wait();
    }
  }

  AccessHandler& handler_;
  std::vector<Held> held_;
  std::vector<ShardedUnit*> units_;
  GatherOptions options_;
  // In the world: ranks on which nothing was changed that may not be.
  std::set<int> unchanged_;
};

// Of parameters that nfold::init is building: whole, in memory, until it ends.
class ConstructionGather : public GatherScope {
 public:
  ConstructionGather(std::vector<at::Tensor> params, GatherOptions options)
      : params_(std::move(params)),
        options_(options),
        group_(construction_group()) {
    make_real(params_);
    const ConstructionPause pause;
    for (const auto& param : params_) {
      versions_.push_back(param._version());
      // Nobody else has the values as they were.
      if (!options_.modifier_rank) before_.push_back(param.detach().clone());
    }
  }

  void close() override {
    const ConstructionPause pause;
    at::NoGradGuard no_grad;
    if (options_.modifier_rank) {
      if (group_ == nullptr || group_->size() == 1) return;
      for (const auto& param : params_) {
        auto values = param.detach().contiguous();
        broadcast(*group_, values, *options_.modifier_rank).wait();
        param.detach().copy_(values);
      }
      return;
    }
    bool is_changed = false;
    for (std::size_t i = 0; i < params_.size(); ++i) {
      is_changed = is_changed || params_[i]._version() != versions_[i];
      params_[i].detach().copy_(before_[i]);
    }
    TORCH_CHECK_VALUE(!is_changed,
                      "a parameter was changed inside GatheredParameters "
                      "without a modifier_rank, in the function that "
                      "nfold::init calls. The change was undone. Pass "
                      "modifier_rank = the rank whose values count.");
  }

 private:
  std::vector<at::Tensor> params_;
  GatherOptions options_;
  Group* group_;  // may be null
  std::vector<std::uint32_t> versions_;
  std::vector<at::Tensor> before_;
};

std::size_t index_of(const ShardedUnit& unit, const at::Tensor& param) {
  for (std::size_t i = 0; i < unit.params().size(); ++i) {
    for (const auto& tensor : unit.params()[i].tensors) {
      if (tensor.is_same(param)) return i;
    }
  }
  TORCH_CHECK_VALUE(false, "GatheredParameters: a tensor of shape ",
                    param.sizes(), " is a view of parameters of ", unit.name(),
                    ", not one of them; pass the parameter");
}

void check_modifier(const GatherOptions& options, const Group& group) {
  if (!options.modifier_rank) return;
  TORCH_CHECK_VALUE(
      *options.modifier_rank >= 0 && *options.modifier_rank < group.size(),
      "GatheredParameters: expected a modifier_rank from 0 to ",
      group.size() - 1, " but found ", *options.modifier_rank);
}

// Null if there is nothing to do.
std::unique_ptr<GatherScope> open_scope(const std::vector<at::Tensor>& params,
                                        const GatherOptions& options) {
  AccessHandler* handler = nullptr;
  std::vector<ShardedScope::Held> held;
  std::string nested;
  for (const auto& param : params) {
    const auto watched = dispatch_interceptor().find(param);
    if (!watched.unit) continue;
    TORCH_CHECK_VALUE(!handler || handler == watched.handler,
                      "GatheredParameters: the parameters belong to different "
                      "engines; open one scope for each");
    handler = watched.handler;
    const auto index = index_of(*watched.unit, param);
    if (watched.is_writable) {
      nested += "\n  " + watched.unit->params()[index].name;
      continue;
    }
    auto found = std::find_if(held.begin(), held.end(), [&](const auto& each) {
      return each.unit == watched.unit;
    });
    if (found == held.end()) {
      held.push_back({watched.unit, {}, {}});
      found = held.end() - 1;
    }
    if (!std::count(found->params.begin(), found->params.end(), index)) {
      found->params.push_back(index);
    }
  }
  TORCH_CHECK_VALUE(nested.empty(), handler ? handler->where() : "",
                    ": an open GatheredParameters holds these, or others of "
                    "their units, already:",
                    nested, "\nClose it first, or open one scope for all.");
  if (held.empty()) {
    std::vector<at::Tensor> deferred;
    std::copy_if(params.begin(), params.end(), std::back_inserter(deferred),
                 is_deferred_here);
    if (deferred.empty()) return nullptr;
    const auto* group = construction_group();
    if (group) check_modifier(options, *group);
    return std::make_unique<ConstructionGather>(std::move(deferred), options);
  }
  for (const auto& each : held) {
    check_modifier(options, *each.unit->options().groups.holders);
  }
  // The order in which a set or a map gives them may differ between ranks.
  // Units of one block share its name: split layers, experts, and the rest.
  const auto key = [](const auto& each) {
    return std::pair(each.unit->name(), each.unit->params().front().name);
  };
  std::sort(held.begin(), held.end(),
            [&key](const auto& a, const auto& b) { return key(a) < key(b); });
  return std::make_unique<ShardedScope>(*handler, std::move(held), options);
}

}  // namespace

class GatheredParameters::Impl {
 public:
  explicit Impl(std::unique_ptr<GatherScope> scope)
      : scope_(std::move(scope)) {}
  void close() { scope_->close(); }

 private:
  std::unique_ptr<GatherScope> scope_;
};

GatheredParameters::GatheredParameters(std::vector<at::Tensor> params,
                                       GatherOptions options) {
  if (!options.enabled) return;
  if (auto scope = open_scope(params, options)) {
    impl_ = std::make_unique<Impl>(std::move(scope));
  }
}

void GatheredParameters::close() {
  if (impl_) std::exchange(impl_, nullptr)->close();
}

GatheredParameters::~GatheredParameters() noexcept(false) {
  if (std::uncaught_exceptions() == 0) {
    close();
    return;
  }
  try {
    close();
  } catch (const std::exception& error) {
    log_error("while another error ended GatheredParameters: {}",
              message_of(error));
  }
}

void register_external_parameter(const torch::nn::Module& module,
                                 const at::Tensor& param) {
  TORCH_CHECK_VALUE(
      param.defined() && param.is_leaf() &&
          (param.requires_grad() || dispatch_interceptor().find(param).unit),
      module.name(),
      ": register_external_parameter expected a parameter but "
      "found ",
      param.defined() ? "a tensor that is none" : "an undefined tensor");
}

void unregister_external_parameter(const torch::nn::Module& module,
                                   const at::Tensor& param) {
  register_external_parameter(module, param);
}

}  // namespace nfold
