// File: huge_pages.h
//
// How much of this process lies in huge pages, which decides what a loop over
// memory can reach: a figure without it cannot be repeated.
//
//   fmt::print("{} bytes in huge pages\n", huge_page_bytes());
#pragma once

#include <cstdint>

namespace nfold::bench {

// Anonymous and shared memory; -1 where the system does not tell. Callable
// from any thread.
std::int64_t huge_page_bytes();

}  // namespace nfold::bench
