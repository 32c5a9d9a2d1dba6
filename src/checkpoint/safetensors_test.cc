#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "checkpoint/test_folder.h"
#include "nfold/checkpoint.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A file with this header text and data; the length is right unless given.
std::string file_with(const std::string& header, const std::string& data,
                      std::optional<std::uint64_t> length = {}) {
  const std::uint64_t header_bytes = length.value_or(header.size());
  std::string result(8, '\0');
  std::memcpy(result.data(), &header_bytes, 8);
  return result + header + data;
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string error_for(const std::string& bytes) {
    write_bytes(path_, bytes);
    try {
      load_safetensors(path_);
    } catch (const IoError& error) {
      return message_of(error);
    }
    return "no IoError";
  }

  TestFolder folder_;
  const std::string path_ = folder_ / "a.safetensors";
};

TEST_F(SafetensorsTest, KeepsEveryDtypeAndShape) {
  NamedTensors tensors;
  for (auto dtype :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
        at::kShort, at::kChar, at::kByte, at::kUInt16, at::kUInt32, at::kUInt64,
        at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kComplexFloat}) {
    tensors.emplace_back(std::string("t.") + c10::toString(dtype),
                         at::arange(6, at::kFloat).reshape({2, 3}).to(dtype));
  }
  tensors.emplace_back("bool", torch::tensor({true, false, true}));
  tensors.emplace_back("scalar", at::scalar_tensor(2.5));
  tensors.emplace_back("empty", at::empty({3, 0, 2}));
  tensors.emplace_back("strided", at::randn({5, 4}).t().slice(0, 1, 3));
  tensors.emplace_back("name \"with\" \xc3\xa4 and \n", at::ones({1}));
  save_safetensors(path_, tensors, {{"step", "12"}});

  const SafetensorsContent content = load_safetensors(path_);
  EXPECT_EQ(content.metadata.at("step"), "12");
  EXPECT_EQ(content.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor loaded = content.find(name);
    ASSERT_TRUE(loaded.defined()) << name;
    EXPECT_EQ(loaded.scalar_type(), tensor.scalar_type()) << name;
    ASSERT_EQ(loaded.sizes(), tensor.sizes()) << name;
    const at::Tensor expected = tensor.contiguous();
    if (tensor.numel() == 0) continue;
    EXPECT_EQ(std::memcmp(loaded.const_data_ptr(), expected.const_data_ptr(),
                          expected.nbytes()),
              0)
        << name;
  }
  EXPECT_FALSE(content.find("absent").defined());
}

TEST_F(SafetensorsTest, BytesDoNotDependOnTheOrderGiven) {
  const auto a = at::ones({3}), b = at::zeros({2}, at::kByte);
  save_safetensors(path_, {{"a", a}, {"b", b}});
  const std::string first = bytes_of(path_);
  save_safetensors(path_, {{"b", b}, {"a", a}});
  EXPECT_EQ(bytes_of(path_), first);
}

TEST_F(SafetensorsTest, LoadedTensorsMayChangeAndOutliveTheFile) {
  save_safetensors(path_, {{"a", at::ones({1000})}});
  at::Tensor a = load_safetensors(path_).tensors[0].second;
  a.add_(1);
  EXPECT_EQ(load_safetensors(path_).find("a").sum().item<float>(), 1000);
  save_safetensors(path_, {{"a", at::zeros({1})}});
  std::filesystem::remove(path_);
  EXPECT_EQ(a.sum().item<float>(), 2000);
}

TEST_F(SafetensorsTest, MisalignedDataIsRead) {
  std::string data(5, '\0');
  const float value = 1.5;
  std::memcpy(data.data() + 1, &value, 4);
  write_bytes(path_, file_with(R"({"b":{"dtype":"U8","shape":[1],)"
                               R"("data_offsets":[0,1]},"f":{"dtype":"F32",)"
                               R"("shape":[1],"data_offsets":[1,5]}} )",
                               data));
  EXPECT_EQ(load_safetensors(path_).find("f").item<float>(), 1.5);
}

TEST_F(SafetensorsTest, BadArgumentsAreRefusedBeforeWriting) {
  const auto one = at::ones({1});
  EXPECT_THROW(save_safetensors(path_, {{"a", one}, {"a", one}}),
               c10::ValueError);
  EXPECT_THROW(save_safetensors(path_, {{"__metadata__", one}}),
               c10::ValueError);
  EXPECT_THROW(save_safetensors(path_, {{"a", at::Tensor()}}), c10::ValueError);
  EXPECT_THROW(save_safetensors(path_, {{"a", one.to(at::kComplexDouble)}}),
               c10::ValueError);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_THROW(save_safetensors(folder_ / "no/such/a", {{"a", one}}), IoError);
}

TEST_F(SafetensorsTest, FailedWriteLeavesTheOldFileAndNoOther) {
  save_safetensors(path_, {{"a", at::ones({4})}});
  const std::string before = bytes_of(path_);
  // Writing past the limit fails as a full disk does, with another errno.
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  auto* old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = old_limit;
  limit.rlim_cur = 100'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::string text;
  try {
    save_safetensors(path_, {{"a", at::ones({100'000})}});
  } catch (const IoError& error) {
    text = message_of(error);
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(text, AllOf(HasSubstr(path_), HasSubstr("writing failed"),
                          HasSubstr("as it was before")));
  EXPECT_EQ(bytes_of(path_), before);
  EXPECT_EQ(
      std::distance(std::filesystem::directory_iterator(folder_.path()), {}),
      1);
}

TEST_F(SafetensorsTest, EveryTruncationIsAnError) {
  save_safetensors(path_, {{"a", at::ones({4})}, {"b", at::ones({2})}},
                   {{"k", "v"}});
  const std::string whole = bytes_of(path_);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_for(whole.substr(0, size)), "no IoError") << size;
  }
  EXPECT_THAT(error_for(whole.substr(0, whole.size() - 4)),
              AllOf(HasSubstr(path_), HasSubstr("truncated")));
}

// Flips every bit of a small file: each gives an error or a readable tensor,
// never a crash (the sanitizer presets look closer).
TEST_F(SafetensorsTest, DamagedBytesNeverCrash) {
  save_safetensors(path_, {{"a", at::ones({2})}, {"b", torch::tensor({true})}});
  const std::string whole = bytes_of(path_);
  int num_errors = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    if (error_for(damaged) != "no IoError") {
      ++num_errors;
      continue;
    }
    for (const auto& [name, tensor] : load_safetensors(path_).tensors) {
      EXPECT_GE(tensor.to(at::kDouble).nan_to_num().sum().item<double>(),
                -1e300);
    }
  }
  EXPECT_GT(num_errors, 500);
}

struct BadHeader {
  std::string name;
  std::string header;
  std::string data;
  std::string expected;
};

class BadHeaderTest : public SafetensorsTest,
                      public testing::WithParamInterface<BadHeader> {};

TEST_P(BadHeaderTest, IsAClearError) {
  const std::string text =
      error_for(file_with(GetParam().header, GetParam().data));
  EXPECT_THAT(text, AllOf(HasSubstr(path_), HasSubstr(GetParam().expected)));
}

std::string entry(const std::string& name, const std::string& dtype,
                  const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

INSTANTIATE_TEST_SUITE_P(
    Headers, BadHeaderTest,
    testing::Values(
        BadHeader{"NotJson", "{\"a\":", "", "not valid JSON at byte"},
        BadHeader{"NotUtf8", "{\"\xff\":1}", "", "not valid JSON"},
        BadHeader{"Array", "[]", "", "must be a JSON object, found array"},
        BadHeader{"DeepNesting", "{\"a\":" + std::string(100'000, '['), "",
                  "nests deeper"},
        BadHeader{"EntryNotObject", "{\"a\":1}", "", "must be an object"},
        BadHeader{"NoDtype", R"({"a":{"shape":[],"data_offsets":[0,4]}})",
                  "1234", "\"dtype\" is missing"},
        BadHeader{"UnknownDtype", "{" + entry("a", "F4", "[1]", "[0,1]") + "}",
                  "1", "dtype \"F4\" is not one that nfold reads"},
        BadHeader{"NegativeShape",
                  "{" + entry("a", "F32", "[-1]", "[0,4]") + "}", "1234",
                  "found -1"},
        BadHeader{"FractionalShape",
                  "{" + entry("a", "F32", "[1.5]", "[0,4]") + "}", "1234",
                  "found 1.5"},
        BadHeader{
            "HugeNumber",
            "{" + entry("a", "F32", "[1]", "[0,18446744073709551615]") + "}",
            "1234", "from 0 to 2^63 - 1"},
        BadHeader{
            "ProductOverflows",
            "{" + entry("a", "F32", "[4611686018427387904,4]", "[0,0]") + "}",
            "", "larger than any file"},
        BadHeader{"TooManyDims",
                  "{" +
                      entry(
                          "a", "U8",
                          "[1" +
                              [] {
                                std::string ones;
                                for (int i = 0; i < 70; ++i) ones += ",1";
                                return ones;
                              }() +
                              "]",
                          "[0,1]") +
                      "}",
                  "1", "71 dimensions"},
        BadHeader{"SizeMismatch", "{" + entry("a", "F32", "[2]", "[0,4]") + "}",
                  "1234",
                  "F32 of shape [2] needs 8 bytes, but \"data_offsets\" span "
                  "4"},
        BadHeader{"Backwards", "{" + entry("a", "F32", "[1]", "[4,0]") + "}",
                  "1234", "before it begins"},
        BadHeader{"OutOfRange", "{" + entry("a", "F32", "[2]", "[0,8]") + "}",
                  "1234", "holds 4 bytes of data. The file is truncated"},
        BadHeader{"ThreeOffsets",
                  "{" + entry("a", "F32", "[1]", "[0,4,4]") + "}", "1234",
                  "[begin, end], found 3"},
        BadHeader{"Overlap",
                  "{" + entry("a", "U8", "[3]", "[0,3]") + "," +
                      entry("b", "U8", "[2]", "[2,4]") + "}",
                  "1234", "\"a\" and \"b\" overlap at byte 2"},
        BadHeader{"Hole",
                  "{" + entry("a", "U8", "[1]", "[0,1]") + "," +
                      entry("b", "U8", "[2]", "[2,4]") + "}",
                  "1234", "bytes 1 to 2"},
        BadHeader{"TrailingData", "{" + entry("a", "U8", "[1]", "[0,1]") + "}",
                  "1234", "tensors end at byte 1"},
        BadHeader{"Twice",
                  "{" + entry("a", "U8", "[1]", "[0,1]") + "," +
                      entry("a", "U8", "[1]", "[0,1]") + "}",
                  "1", "\"a\" stands twice"},
        BadHeader{"BadBool", "{" + entry("a", "BOOL", "[1]", "[0,1]") + "}",
                  "2", "bytes other than 0 and 1"},
        BadHeader{"MetadataNotStrings", R"({"__metadata__":{"k":1}})", "",
                  "must be a string, found number"},
        BadHeader{"MetadataNotObject", R"({"__metadata__":"x"})", "",
                  "must be an object of strings"}),
    [](const auto& info) { return info.param.name; });

TEST_F(SafetensorsTest, HeaderLengthIsChecked) {
  EXPECT_THAT(error_for("abc"), HasSubstr("has only 3 bytes"));
  EXPECT_THAT(error_for(""), HasSubstr("has only 0 bytes"));
  EXPECT_THAT(error_for(file_with("{}", "", 100)),
              HasSubstr("claims 100 bytes, but only 2 follow"));
  EXPECT_THAT(error_for(file_with("{}", "", 100'000'001)),
              HasSubstr("at most 100000000"));
  EXPECT_THAT(error_for(file_with("{}", "", ~std::uint64_t{0})),
              HasSubstr("at most 100000000"));
  EXPECT_EQ(error_for(file_with("{}", "")), "no IoError");
}

TEST_F(SafetensorsTest, FolderOrMissingFileIsAnError) {
  EXPECT_THROW(load_safetensors(path_), IoError);
  EXPECT_THROW(load_safetensors(folder_.path()), IoError);
}

}  // namespace
}  // namespace nfold
