#include "nfold/report.h"

#include "base/profile.h"

namespace nfold {

void write_trace(const std::string& path) { write_chrome_trace(path); }

}  // namespace nfold
