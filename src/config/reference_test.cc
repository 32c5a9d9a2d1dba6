#include "config/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "config/config_key.h"

namespace nfold {
namespace {

std::string committed(const std::string& name) {
  std::ifstream file(std::string(NFOLD_DOCS_DIR) + "/" + name);
  EXPECT_TRUE(file.is_open()) << name;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Reference, CommittedPageIsWhatTheTableSays) {
  EXPECT_TRUE(committed("configuration.md") == reference_markdown())
      << "docs/configuration.md is stale; its first lines say how to write it";
}

TEST(Reference, CommittedSchemaIsWhatTheTableSays) {
  EXPECT_TRUE(committed("config.schema.json") == reference_schema())
      << "write docs/config.schema.json with nfold-config-reference --schema";
}

TEST(Reference, EveryKeyHasARow) {
  const std::string page = reference_markdown();
  const auto schema = nlohmann::json::parse(reference_schema());
  for (const ConfigKey& key : config_keys()) {
    EXPECT_THAT(page, testing::HasSubstr(
                          "| `" + std::string(leaf_of(key.path)) + "` |"));
    const nlohmann::json* node = &schema;
    std::string rest(key.path);
    while (node != nullptr && !rest.empty()) {
      const std::string part = rest.substr(0, rest.find('.'));
      rest = part.size() == rest.size() ? "" : rest.substr(part.size() + 1);
      const auto found = node->at("properties").find(part);
      node = found == node->at("properties").end() ? nullptr : &*found;
    }
    EXPECT_NE(node, nullptr) << key.path;
  }
}

}  // namespace
}  // namespace nfold
