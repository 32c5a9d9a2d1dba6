// File: access_source.h
//
// Who notices that a sharded parameter is about to be used, and who is told.
//
// An AccessSource watches units and calls the unit's AccessHandler around
// every use; dispatch_interceptor.h is the one there is. The two interfaces
// are all that the fetcher and the source know of each other, so another
// trigger (module hooks, a compiler pass) can take its place.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <string>

#include "param/sharded_unit.h"

namespace nfold {

// What one operator uses: seldom more than one, and found for every operator.
using UnitRefs = c10::ArrayRef<ShardedUnit*>;
using UnitList = c10::SmallVector<ShardedUnit*, 4>;

class AccessHandler {
 public:
  virtual ~AccessHandler() = default;

  // The units are about to be used together, each of them once: makes them
  // whole and keeps them so until end_access. Nests. Any thread. Raises what
  // the communication raises; then nothing is kept.
  virtual void begin_access(UnitRefs units) = 0;
  // The same with the values that rest in the shards, where units travel less
  // exactly than that. Raises c10::ValueError if an operator that runs uses
  // one that came otherwise. Ends with end_access.
  virtual void begin_exact_access(UnitRefs units) = 0;
  virtual void end_access(UnitRefs units) noexcept = 0;

  // Shards the units again, unless something else keeps them whole, and drops
  // what was written to them while they were whole.
  virtual void discard(UnitRefs units) = 0;

  // "[rank 1] step 12": for errors.
  virtual std::string where() const = 0;
  // The ranks that hold the model, and so must agree on its values.
  virtual Group& group() const = 0;
};

// Keeps units whole for the time of a scope.
class AccessPin {
 public:
  AccessPin(AccessHandler& handler, UnitRefs units)
      : handler_(handler), units_(units) {
    handler_.begin_access(units_);
  }
  ~AccessPin() { handler_.end_access(units_); }
  AccessPin(const AccessPin&) = delete;
  AccessPin& operator=(const AccessPin&) = delete;

 private:
  AccessHandler& handler_;
  UnitList units_;
};

class AccessSource {
 public:
  virtual ~AccessSource() = default;

  // From now on the handler hears of every use of the unit's parameters, of
  // views of them too, unless the unit is resident: then only verify and
  // gather scopes are concerned. Both must outlive the watch.
  virtual void watch(ShardedUnit& unit, AccessHandler& handler) = 0;
  virtual void unwatch(ShardedUnit& unit) noexcept = 0;

  // Raises c10::ValueError, naming the parameter, when something replaced a
  // watched parameter's storage, shape or mark behind the source's back, as
  // set_data and Module::to do: its uses would go unnoticed.
  virtual void verify(const ShardedUnit& unit) const = 0;
};

}  // namespace nfold
