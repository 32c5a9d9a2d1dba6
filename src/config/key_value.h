// File: key_value.h
//
// Reads the value of one key of the table into its field.
//
//   read_value(section, "stage", key, config);
//
// Keeps no state.
#pragma once

#include <string>

#include "config/config_key.h"

namespace nfold {

// Reads `name`, the key's own name or an alias, from its section. Returns
// whether a value was stored; what does not fit becomes a violation. `key` must
// have a field, and the configuration its optimizer or scheduler.
bool read_value(JsonObject& section, const std::string& name,
                const ConfigKey& key, Config& config);

}  // namespace nfold
