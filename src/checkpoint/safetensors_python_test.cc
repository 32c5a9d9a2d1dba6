// Round trips with the `safetensors` package of Python. NFOLD_PYTHON names the
// interpreter that torch was found through.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdlib>
#include <fstream>

#include "checkpoint/test_folder.h"
#include "nfold/checkpoint.h"
#include "testing/skip.h"

namespace nfold {
namespace {

class SafetensorsPythonTest : public testing::Test {
 protected:
  bool run(const std::string& script) {
    const std::string path = folder_ / "script.py";
    std::ofstream(path) << script;
    const std::string command =
        std::string(NFOLD_PYTHON) + " " + path + " " + folder_.path();
    return std::system(command.c_str()) == 0;
  }

  void SetUp() override {
    if (!run("import safetensors.torch\n")) {
      NFOLD_SKIP("needs Python's safetensors and torch packages");
    }
  }

  TestFolder folder_;
};

TEST_F(SafetensorsPythonTest, ReadsOursAndWritesWhatWeRead) {
  const auto weight = at::arange(12, at::kFloat).reshape({3, 4}) / 7;
  const auto half = at::arange(5, at::kFloat).to(at::kBFloat16);
  const auto flags = torch::tensor({true, false, true});
  save_safetensors(folder_ / "ours.safetensors",
                   {{"flags", flags}, {"h.0.weight", weight}, {"half", half}},
                   {{"who", "nfold"}});
  ASSERT_TRUE(run(R"(
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
folder = sys.argv[1]
tensors = {}
with safe_open(folder + "/ours.safetensors", "pt") as file:
    assert file.metadata() == {"who": "nfold"}, file.metadata()
    for name in file.keys():
        tensors[name] = file.get_tensor(name)
assert set(tensors) == {"flags", "h.0.weight", "half"}, tensors.keys()
expected = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7
assert torch.equal(tensors["h.0.weight"], expected)
assert tensors["half"].dtype == torch.bfloat16
assert tensors["flags"].tolist() == [True, False, True]
tensors["more"] = torch.arange(7, dtype=torch.int64)
save_file(tensors, folder + "/theirs.safetensors", metadata={"k": "v"})
)"));
  const auto theirs = load_safetensors(folder_ / "theirs.safetensors");
  EXPECT_EQ(theirs.metadata.at("k"), "v");
  EXPECT_EQ(theirs.tensors.size(), 4u);
  EXPECT_TRUE(at::equal(theirs.find("h.0.weight"), weight));
  EXPECT_TRUE(at::equal(theirs.find("half"), half));
  EXPECT_TRUE(at::equal(theirs.find("flags"), flags));
  EXPECT_TRUE(at::equal(theirs.find("more"), at::arange(7)));
}

}  // namespace
}  // namespace nfold
