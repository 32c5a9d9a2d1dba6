// File: doctor.h
//
// What this build and this machine offer to nfold, as `nfold doctor` prints
// it. Each fact is found out by trying, not by reading a setting, wherever
// that takes milliseconds.
//
//   fmt::print("{}", format_facts(examine_machine()));
//
// Callable from any thread, once at a time.
#pragma once

#include <string>
#include <vector>

namespace nfold::train {

struct Fact {
  std::string section;
  std::string name;
  std::string value{};
  // What to do about what is lacking. Empty if nothing is.
  std::string remedy{};
  // Training is not possible before the remedy is taken.
  bool is_fatal = false;
};

std::vector<Fact> examine_machine();

// A table with one block per section, remedies beneath their facts.
std::string format_facts(const std::vector<Fact>& facts);

bool has_fatal(const std::vector<Fact>& facts);

}  // namespace nfold::train
