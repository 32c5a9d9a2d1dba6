// Prints docs/configuration.md, or docs/config.schema.json with --schema.
#include <cstdio>
#include <string_view>

#include "config/reference.h"

int main(int argc, char** argv) {
  const bool wants_schema =
      argc == 2 && std::string_view(argv[1]) == "--schema";
  if (argc > 1 && !wants_schema) {
    std::fprintf(stderr, "usage: nfold-config-reference [--schema]\n");
    return 2;
  }
  const std::string text =
      wants_schema ? nfold::reference_schema() : nfold::reference_markdown();
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() ? 0
                                                                         : 1;
}
