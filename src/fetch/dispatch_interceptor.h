// File: dispatch_interceptor.h
//
// The AccessSource that torch's dispatcher is: a sharded parameter carries a
// dispatch key of its own, so every operator that has it, or a view of it,
// among its arguments passes through here first, in forward, in backward
// (saved tensors) and in recomputation. No hooks, no wrapped modules, and
// operators without sharded arguments never come by.
//
// [Note: What an operator may do]
// All sharded arguments of one operator are made whole together and stay so
// until it returns; lists, optional lists, tuples and dictionaries are
// searched. Operators that only make views need no data
// (operator_kind.h). An operator that writes to a sharded parameter is an
// error outside of a writable scope: what it writes would be lost. So is one
// that replaces its storage. A result that shares memory with a sharded
// parameter without carrying its key gets the key.
//
// The table of watched storages belongs to the process, since the dispatcher
// calls a plain function.
//
// Thread-safe.
#pragma once

#include "fetch/access_source.h"

namespace nfold {

class DispatchInterceptor : public AccessSource {
 public:
  void watch(ShardedUnit& unit, AccessHandler& handler) override;
  void unwatch(ShardedUnit& unit) noexcept override;
  void verify(const ShardedUnit& unit) const override;

  // Between them operators may write to the unit's parameters.
  void set_writable(const ShardedUnit& unit, bool is_writable);

  // The unit that `tensor`, or what it is a view of, belongs to, and its
  // handler; null if it is not sharded.
  struct Watched {
    ShardedUnit* unit = nullptr;
    AccessHandler* handler = nullptr;
    bool is_writable = false;
  };
  Watched find(const at::Tensor& tensor) const;
};

// The process's one.
DispatchInterceptor& dispatch_interceptor();

}  // namespace nfold
