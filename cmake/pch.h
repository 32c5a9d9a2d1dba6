// The precompiled header of every target: what nearly every file includes and
// what takes longest to parse. Files still include what they use.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>
