// File: typed_operators.h
//
// A shorter way for the operators that models use most. The dispatcher boxes
// the arguments of an operator for the fallback of dispatch_fallback.h, which
// takes longer than noticing a parameter among them; the operators of this
// file have kernels of their own, with their own argument types, that do the
// same as dispatch_interceptor.h. While a constructor is recorded they go the
// long way.
#pragma once

namespace nfold {

// Idempotent; for the rest of the process. Thread-safe.
void register_typed_operators();

}  // namespace nfold
