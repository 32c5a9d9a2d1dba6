// File: validate.h
//
// Finds values of a configuration that are out of range, contradict each other
// or ask for what this version lacks.
//
//   add_violations(config, reader);    // one violation per finding
//
// A pure function of the configuration.
#pragma once

#include "nfold/config.h"
#include "nfold/strict_json.h"

namespace nfold {

// Adds every violation to the document of `reader`, whose path is put before
// the names of the keys.
void add_violations(const Config& config, JsonObject reader);

}  // namespace nfold
