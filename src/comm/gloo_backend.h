// File: gloo_backend.h
//
// Makes the transport of a group of CPU ranks: torch's Gloo process group over
// TCP. Used by World::new_group; nothing else needs to know which transport a
// group has.
//
//   auto backend = make_gloo_backend(store, rank, size, timeout, "lo");
//   auto group = make_group(spec, backend);
//
// Every rank of the group must call it with a store of its own name space
// (c10d::PrefixStore), at the same time: it connects every pair of ranks.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace nfold {

// `interface_hint` chooses the address that the peers connect to: the name of
// a network interface ("eth0"), a host name or address ("127.0.0.1", which
// serves ranks of one host), or empty for the address of this host's name.
// Returns null for one rank, which needs no transport.
// Raises c10::DistBackendError, with rank and address, when the ranks cannot
// connect within the time-out.
c10::intrusive_ptr<c10d::Backend> make_gloo_backend(
    c10::intrusive_ptr<c10d::Store> store, int rank, int size,
    std::chrono::milliseconds timeout, const std::string& interface_hint);

}  // namespace nfold
