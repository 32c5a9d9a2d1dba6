#include "nfold/params.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <functional>

#include "engine/engine_impl.h"
#include "engine/param_pieces.h"

namespace nfold {
namespace {

// One parameter of an engine: where it is, and which of its elements this
// rank owns.
class Access {
 public:
  Access(Engine& engine, const at::Tensor& param)
      : engine_(engine.impl()), address_(engine_.model().find(param)) {}

  ShardedUnit& unit() { return *engine_.model().units()[address_.unit]; }
  Engine::Impl& engine() { return engine_; }
  const ParamState& param() { return unit().params()[address_.param]; }
  std::size_t trained_index() {
    return engine_.model().trained_index(address_.unit);
  }

  Fragment owned() { return owned_piece(unit(), address_.param); }

  // From a tensor over the owned range to the parameter's part of it.
  at::Tensor owned_part(const at::Tensor& owned_range) {
    const auto part = owned();
    return owned_range.narrow(0, part.range_begin, part.numel);
  }

  // The full parameter-shaped tensor whose owned pieces the ranks hold.
  at::Tensor gather(const at::Tensor& own_piece) {
    return gather_pieces(unit(), address_.param, own_piece)
        .view(param().tensor().sizes());
  }

  at::Tensor own_piece_of(const at::Tensor& full_value) {
    TORCH_CHECK_VALUE(full_value.sizes() == param().tensor().sizes(),
                      param().name, ": expected a value of shape ",
                      param().tensor().sizes(), " but found ",
                      full_value.sizes());
    const auto mine = owned();
    return full_value.detach().reshape({-1}).narrow(0, mine.param_begin,
                                                    mine.numel);
  }

  at::Tensor checked_local(const at::Tensor& value) {
    TORCH_CHECK_VALUE(value.dim() == 1 && value.numel() == owned().numel,
                      param().name, ": this rank owns ", owned().numel,
                      " elements but was given a value of shape ",
                      value.sizes());
    return value.detach();
  }

  void check_has_grad() {
    trained_index();
    TORCH_CHECK_VALUE(engine_.has_gradients(), param().name,
                      ": there is no gradient now; gradients exist from "
                      "backward until the step that uses them, and with "
                      "reduce_at_boundary from the last backward before it");
  }

 private:
  Engine::Impl& engine_;
  ParamAddress address_;
};

at::Tensor owned_weights(Access& access) {
  auto& unit = access.unit();
  return access.owned_part(unit.options().is_trained ? unit.master()
                                                     : unit.owned());
}

at::Tensor unscaled_grad(Access& access) {
  access.check_has_grad();
  access.engine().reduce_over_replicas();
  return access.owned_part(access.unit().grad())
      .to(at::kFloat)
      .mul(access.engine().grad_scale());
}

void set_grad(Access& access, const at::Tensor& own_piece) {
  access.engine().reduce_over_replicas();
  access.owned_part(access.unit().grad())
      .copy_(own_piece.to(at::kFloat).div(access.engine().grad_scale()));
}

ShardedOptimizer& optimizer_of(Access& access) {
  auto* optimizer = access.engine().optimizer();
  TORCH_CHECK_VALUE(optimizer, access.param().name,
                    ": this run has no optimizer, so there is no state");
  return *optimizer;
}

at::Tensor owned_state(Access& access, const std::string& state) {
  return access.owned_part(
      optimizer_of(access).state(access.trained_index(), state));
}

void set_state(Access& access, const std::string& state,
               const at::Tensor& own_piece) {
  optimizer_of(access).set_state(access.trained_index(), state,
                                 access.owned().range_begin, own_piece);
}

}  // namespace

at::Tensor safe_get_full_fp32_param(Engine& engine, const at::Tensor& param) {
  Access access(engine, param);
  return access.gather(owned_weights(access).to(at::kFloat));
}

void safe_set_full_fp32_param(Engine& engine, const at::Tensor& param,
                              const at::Tensor& value) {
  Access access(engine, param);
  const auto piece = access.own_piece_of(value);
  access.engine().check_idle("safe_set_full_fp32_param");
  access.engine().begin_update(access.unit());
  owned_weights(access).copy_(piece);
  access.engine().publish(access.unit());
}

at::Tensor safe_get_full_grad(Engine& engine, const at::Tensor& param) {
  Access access(engine, param);
  return access.gather(unscaled_grad(access));
}

void safe_set_full_grad(Engine& engine, const at::Tensor& param,
                        const at::Tensor& value) {
  Access access(engine, param);
  access.check_has_grad();
  set_grad(access, access.own_piece_of(value));
}

at::Tensor safe_get_full_optimizer_state(Engine& engine,
                                         const at::Tensor& param,
                                         const std::string& state) {
  Access access(engine, param);
  return access.gather(owned_state(access, state));
}

void safe_set_full_optimizer_state(Engine& engine, const at::Tensor& param,
                                   const at::Tensor& value,
                                   const std::string& state) {
  Access access(engine, param);
  set_state(access, state, access.own_piece_of(value));
}

at::Tensor safe_get_local_fp32_param(Engine& engine, const at::Tensor& param) {
  Access access(engine, param);
  return owned_weights(access).to(at::kFloat).clone();
}

void safe_set_local_fp32_param(Engine& engine, const at::Tensor& param,
                               const at::Tensor& value) {
  Access access(engine, param);
  const auto piece = access.checked_local(value);
  access.engine().check_idle("safe_set_local_fp32_param");
  access.engine().begin_update(access.unit());
  owned_weights(access).copy_(piece);
  access.engine().publish(access.unit());
}

at::Tensor safe_get_local_grad(Engine& engine, const at::Tensor& param) {
  Access access(engine, param);
  return unscaled_grad(access);
}

void safe_set_local_grad(Engine& engine, const at::Tensor& param,
                         const at::Tensor& value) {
  Access access(engine, param);
  access.check_has_grad();
  set_grad(access, access.checked_local(value));
}

at::Tensor safe_get_local_optimizer_state(Engine& engine,
                                          const at::Tensor& param,
                                          const std::string& state) {
  Access access(engine, param);
  return owned_state(access, state).clone();
}

void safe_set_local_optimizer_state(Engine& engine, const at::Tensor& param,
                                    const at::Tensor& value,
                                    const std::string& state) {
  Access access(engine, param);
  set_state(access, state, access.checked_local(value));
}

}  // namespace nfold
