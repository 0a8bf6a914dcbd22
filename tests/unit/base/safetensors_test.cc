#include "runtime/base/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

namespace tessera {
namespace {

using ::testing::HasSubstr;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) /
        ("tessera-" + std::to_string(getpid()) + "-" + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string WriteFile(const std::string& bytes) const {
    const std::string path = Path("file.safetensors");
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  static std::string WithLength(uint64_t length, const std::string& rest) {
    std::string prefix(sizeof length, '\0');
    std::memcpy(prefix.data(), &length, sizeof length);
    return prefix + rest;
  }
  static std::string File(const std::string& header, size_t data_bytes) {
    return WithLength(header.size(), header + std::string(data_bytes, 'x'));
  }
  void ExpectRefused(const std::string& bytes, const std::string& message) const {
    const std::string path = WriteFile(bytes);
    const StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
    ASSERT_FALSE(file.ok()) << message;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(message));
  }
  int FilesInFolder() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }

  std::filesystem::path folder_;
};

TEST_F(SafetensorsTest, MissingFileIsNamed) {
  const auto file = SafetensorsFile::Open(Path("absent"));
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(Path("absent")));
  EXPECT_THAT(std::string(SafetensorsFile::Open(folder_.string()).status().message()), HasSubstr("not a regular file"));
}

TEST_F(SafetensorsTest, HostileLengthsAreRefused) {
  ExpectRefused("", "0 bytes; a safetensors file begins with");
  ExpectRefused("1234567", "7 bytes; a safetensors file begins with");
  ExpectRefused(WithLength(3, "{}"), "header length 3 is not in [0, 2]");
  ExpectRefused(WithLength(~uint64_t{0}, "{}"), "header length 18446744073709551615 is not in [0, 2]");
  ExpectRefused(WithLength(uint64_t{1} << 63, "{}"), "header length 9223372036854775808");
}

TEST_F(SafetensorsTest, HeadersAboveTheCapAreRefused) {
  const std::string path = WriteFile(WithLength(kMaxSafetensorsHeaderBytes + 1, ""));
  std::filesystem::resize_file(path, kMaxSafetensorsHeaderBytes + 100);  // sparse
  EXPECT_THAT(std::string(SafetensorsFile::Open(path).status().message()), HasSubstr("header length 100000001"));
}

TEST_F(SafetensorsTest, BadMetadataIsRefused) {
  ExpectRefused(File(R"({"__metadata__": 7})", 0), "__metadata__ is 7; allowed: an object of strings");
  ExpectRefused(File(R"({"__metadata__": ["a"]})", 0), "__metadata__ is [\"a\"]");
  ExpectRefused(File(R"({"__metadata__": {"a": {"b": "c"}}})", 0), "__metadata__ entry \"a\" is {\"b\":\"c\"}");
  ExpectRefused(File(R"({"__metadata__": {"a": null}})", 0), "__metadata__ entry \"a\" is null; allowed: a string");
  ExpectRefused(File(R"({"__metadata__": {"a": "b", "a": "c"}})", 0), "__metadata__ entry \"a\" is given twice");
  ExpectRefused(File(R"({"__metadata__": {}, "__metadata__": {}})", 0), "described twice");
}

TEST_F(SafetensorsTest, BadJsonIsRefused) {
  ExpectRefused(File("", 0), "not a JSON object");
  ExpectRefused(File("{\"q\":", 0), "not a JSON object");
  ExpectRefused(File("[1]", 0), "not a JSON object");
  ExpectRefused(File("{\"\xff\":1}", 0), "not a JSON object");
  ExpectRefused(File(std::string(100000, '['), 0), "not a JSON object");
  ExpectRefused(File("{\"q\":1}", 0), "tensor \"q\": its entry is 1, not an object");
}

TEST_F(SafetensorsTest, BadTensorsAreRefused) {
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"q":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  ExpectRefused(File(tensor("\"Q4\"", "[2]", "[0,8]"), 8), "tensor \"q\": dtype \"Q4\" is not one of");
  ExpectRefused(File(tensor("7", "[2]", "[0,8]"), 8), "dtype 7 is not one of");
  ExpectRefused(File(tensor("\"F32\"", "[-2]", "[0,8]"), 8), "has extent -2; allowed: 0 to 2^63-1");
  ExpectRefused(File(tensor("\"F32\"", "[2.5]", "[0,8]"), 8), "has extent 2.5");
  ExpectRefused(File(tensor("\"F32\"", "[1e300]", "[0,8]"), 8), "has extent 1e+300");
  ExpectRefused(File(tensor("\"F32\"", "\"2\"", "[0,8]"), 8), "is not an array");
  ExpectRefused(File(tensor("\"F32\"", "[4294967296,4294967296]", "[0,8]"), 8), "is larger than 2^63 bytes");
  ExpectRefused(File(tensor("\"F32\"", "[2]", "[0]"), 8), "are not two byte counts");
  ExpectRefused(File(tensor("\"F32\"", "[2]", "[-8,0]"), 8), "are not two byte counts");
  ExpectRefused(File(tensor("\"F32\"", "[2]", "[8,0]"), 8), "data_offsets [8,0] are reversed");
  ExpectRefused(File(tensor("\"F32\"", "[2]", "[0,8]"), 7), "data_offsets [0,8] leave the file's 7 bytes");
  ExpectRefused(File(tensor("\"F32\"", "[3]", "[0,8]"), 8), "span 8 bytes but F32 [3] needs 12");
  ExpectRefused(File(R"({"q":{"shape":[2],"data_offsets":[0,8]}})", 8), "dtype null is not one of");
}

TEST_F(SafetensorsTest, OverlapsHolesAndDuplicatesAreRefused) {
  const std::string first = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  ExpectRefused(File("{" + first + R"(,"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6),
                "tensor \"b\" begins at data byte 2, which overlaps \"a\", ending at 4");
  ExpectRefused(File("{" + first + R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]}})", 6),
                "leaves a hole after \"a\"");
  ExpectRefused(File("{" + first + "}", 5), "the data section has 5 bytes but the tensors end at 4");
  ExpectRefused(File("{" + first + "," + first + "}", 4), "tensor \"a\" is described twice");
}

TEST_F(SafetensorsTest, UnservedTypesAndRanksAreListedButNotViewed) {
  const std::string path = WriteFile(File(R"({"__metadata__":{"by":"test"},
    "i":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
                                          16));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 2u);
  EXPECT_THAT(std::string(file->View("i").status().message()),
              HasSubstr("tensor \"i\" is I64 [1, 1]; allowed: types F32, BF16 and F16"));
  EXPECT_THAT(std::string(file->View("v").status().message()), HasSubstr("allowed: [tokens, heads, width]"));
  EXPECT_THAT(std::string(file->View("q").status().message()), HasSubstr("no tensor \"q\"; the file holds i, v"));
}

TEST_F(SafetensorsTest, MisalignedDataIsReadButNotViewed) {
  const std::string header = R"({"q":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})";
  const std::string path = WriteFile(File(header + std::string((9 - header.size() % 8) % 8, ' '), 4));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(std::string(file->View("q").status().message()), HasSubstr("is not a multiple of 4"));
  float value = 0;
  const std::vector<Segment> rows = {{0, 1, 1}};
  EXPECT_TRUE(file->ReadRows("q", rows, TensorView::Dense(&value, DType::kFloat32, 1, 1, 1)).ok());
}

class SafetensorsWriterTest : public SafetensorsTest {
 protected:
  static constexpr int64_t kTokens = 7;
  const std::vector<SafetensorsEntry> entries_ = {{"out", DType::kBFloat16, {kTokens, 2, 3}},
                                                  {"lse", DType::kFloat32, {kTokens, 2}}};
};

TEST_F(SafetensorsWriterTest, RanksWriteTheirOwnRowsOfOneFile) {
  const std::string target = Path("out.safetensors");
  const std::vector<std::vector<Segment>> owned = {{{0, 4, 2}}, {{1, 3, 2}}};
  auto creator = SafetensorsWriter::Create(target, entries_, 1);
  ASSERT_TRUE(creator.ok()) << creator.status();
  auto joiner = SafetensorsWriter::Join(target, entries_, 1);
  ASSERT_TRUE(joiner.ok()) << joiner.status();
  const SafetensorsWriter* writers[] = {&*creator, &*joiner};
  for (int rank = 0; rank < 2; ++rank) {
    const Segment& segment = owned[rank][0];
    std::vector<uint16_t> out(segment.count * 6);
    std::vector<float> lse(segment.count * 2);
    for (int64_t row = 0; row < segment.count; ++row) {
      for (int i = 0; i < 6; ++i) out[row * 6 + i] = static_cast<uint16_t>(segment.token(row) * 10 + i);
      for (int i = 0; i < 2; ++i) lse[row * 2 + i] = static_cast<float>(segment.token(row) * 10 + i);
    }
    ASSERT_TRUE(
        writers[rank]
            ->WriteRows("out", owned[rank], TensorView::Dense(out.data(), DType::kBFloat16, segment.count, 2, 3))
            .ok());
    ASSERT_TRUE(writers[rank]
                    ->WriteRows("lse", owned[rank], TensorView::Dense(lse.data(), DType::kFloat32, segment.count, 2, 1))
                    .ok());
  }
  EXPECT_FALSE(std::filesystem::exists(target));
  EXPECT_FALSE(joiner->Commit().ok());
  ASSERT_TRUE(creator->Commit().ok());
  EXPECT_EQ(FilesInFolder(), 1);

  const auto file = SafetensorsFile::Open(target);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto out = file->View("out");
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->rows, kTokens);
  std::vector<float> lse(2 * 2);
  const std::vector<Segment> rows = {{2, 2, 3}};
  ASSERT_TRUE(file->ReadRows("lse", rows, TensorView::Dense(lse.data(), DType::kFloat32, 2, 2, 1)).ok());
  EXPECT_EQ(lse, (std::vector<float>{20, 21, 50, 51}));
  for (int64_t token = 0; token < kTokens; ++token) {
    EXPECT_EQ(static_cast<const uint16_t*>(out->At(token, 1))[2], token * 10 + 5);
  }
}

TEST_F(SafetensorsWriterTest, AnUncommittedWriteLeavesTheOldFile) {
  const std::string target = Path("out.safetensors");
  std::ofstream(target) << "precious";
  {
    auto writer = SafetensorsWriter::Create(target, entries_, 2);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_EQ(FilesInFolder(), 2);
  }
  EXPECT_EQ(FilesInFolder(), 1);
  std::string text;
  std::ifstream(target) >> text;
  EXPECT_EQ(text, "precious");
}

TEST_F(SafetensorsWriterTest, MetadataComesBack) {
  const SafetensorsMetadata metadata = {{"format", "pt"}, {"empty", ""}, {"text", "a \"quoted\" line\n\xc3\xa9"}};
  const std::string target = Path("out.safetensors");
  auto writer = SafetensorsWriter::Create(target, entries_, 5, metadata);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Commit().ok());
  const auto file = SafetensorsFile::Open(target);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata(), metadata);
  EXPECT_EQ(file->tensors().size(), entries_.size());
  EXPECT_THAT(std::string(SafetensorsWriter::Create(target, entries_, 6, {{"bad", "\xff"}}).status().message()),
              HasSubstr("must be UTF-8"));
}

TEST_F(SafetensorsWriterTest, AFileLikeAnotherHoldsAnyTypes) {
  const std::vector<SafetensorsTensor> tensors = {{"codes", "F8_E4M3", std::nullopt, {3}, 0, 3},
                                                  {"scalar", "I64", std::nullopt, {}, 3, 11}};
  const std::string target = Path("like.safetensors");
  auto writer = SafetensorsWriter::CreateLike(target, tensors, 7);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string bytes = "abcdefghijk";
  const auto span = std::as_bytes(std::span(bytes));
  EXPECT_THAT(std::string(writer->WriteBytes("codes", span.first(2)).message()),
              HasSubstr("2 bytes for tensor \"codes\", which is F8_E4M3 [3]"));
  ASSERT_TRUE(writer->WriteBytes("codes", span.first(3)).ok());
  ASSERT_TRUE(writer->WriteBytes("scalar", span.subspan(3)).ok());
  ASSERT_TRUE(writer->Commit().ok());
  const auto file = SafetensorsFile::Open(target);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(std::memcmp(file->Bytes(file->tensors()[1]).data(), bytes.data() + 3, 8), 0);
  std::vector<SafetensorsTensor> hole = tensors;
  hole[1].begin_byte = 4;
  EXPECT_THAT(std::string(SafetensorsWriter::CreateLike(target, hole, 8).status().message()),
              HasSubstr("leaves a hole"));
}

TEST_F(SafetensorsWriterTest, BadRequestsAreRefused) {
  const std::string target = Path("out.safetensors");
  auto writer = SafetensorsWriter::Create(target, entries_, 3);
  ASSERT_TRUE(writer.ok()) << writer.status();
  float values[12] = {};
  const std::vector<Segment> beyond = {{kTokens - 1, 2, 1}}, one = {{0, 1, 1}};
  const auto lse_rows = [&](int64_t rows) { return TensorView::Dense(values, DType::kFloat32, rows, 2, 1); };
  EXPECT_THAT(std::string(writer->WriteRows("lse", beyond, lse_rows(2)).message()),
              HasSubstr("tokens 6 to 7 are not within the 7"));
  EXPECT_THAT(std::string(writer->WriteRows("lse", one, lse_rows(2)).message()), HasSubstr("do not fit a buffer"));
  EXPECT_THAT(std::string(writer->WriteRows("gradient", one, lse_rows(1)).message()), HasSubstr("was announced"));
  EXPECT_THAT(std::string(SafetensorsWriter::Create(Path("no/such/folder"), entries_, 1).status().message()),
              HasSubstr("does not exist or is not writable"));
  EXPECT_THAT(std::string(SafetensorsWriter::Create(folder_.string(), entries_, 1).status().message()),
              HasSubstr("not a regular file"));
  const std::vector<SafetensorsEntry> huge = {{"out", DType::kFloat32, {int64_t{1} << 40, int64_t{1} << 40}}};
  EXPECT_THAT(std::string(SafetensorsWriter::Create(target, huge, 4).status().message()),
              HasSubstr("negative or too large"));
}

}  // namespace
}  // namespace tessera
