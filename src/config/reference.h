// File: reference.h
//
// The table of keys as text for people and for editors.
// `nfold-config-reference` prints both; docs/configuration.md and
// docs/config.schema.json are its output.
//
// Pure functions.
#pragma once

#include <string>

namespace nfold {

// docs/configuration.md.
std::string reference_markdown();

// docs/config.schema.json, a JSON Schema of draft 2020-12.
std::string reference_schema();

}  // namespace nfold
