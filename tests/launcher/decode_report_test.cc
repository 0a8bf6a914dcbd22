// What `bench decode` calls right and wrong, and that its records say so.
#include "launcher/lm/decode_report.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace tessera::launcher {
namespace {

DecodeRow Row(std::optional<double> error) {
  DecodeRow row;
  row.method = "head";
  row.kernel = "some-kernel";
  row.error = error;
  row.cache_bytes_per_token = row.cache_bytes = {1};
  return row;
}

TEST(DecodeReport, AnErrorIsHeldAgainstOneRankAndAgainstRoundings) {
  EXPECT_TRUE(Accurate(Row({}), DType::kBFloat16, {}));
  EXPECT_TRUE(Accurate(Row(4e-3), DType::kBFloat16, {}));
  EXPECT_TRUE(Accurate(Row(4e-3), DType::kBFloat16, 2e-3));
  EXPECT_FALSE(Accurate(Row(4.1e-3), DType::kBFloat16, 2e-3));
  EXPECT_FALSE(Accurate(Row(4e-3), DType::kFloat32, {}));
  // One rank that is as wrong as the others excuses nothing.
  EXPECT_FALSE(Accurate(Row(1.0), DType::kBFloat16, 1.0));
  EXPECT_FALSE(Accurate(Row(1.0), DType::kFloat16, {}));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(Accurate(Row(nan), DType::kBFloat16, {}));
  EXPECT_FALSE(Accurate(Row(nan), DType::kBFloat16, nan));
  EXPECT_FALSE(Accurate(Row(1e-3), DType::kBFloat16, nan));
  DecodeRow approximate = Row(0.4);
  approximate.approximate = true;
  EXPECT_TRUE(Accurate(approximate, DType::kBFloat16, 2e-3));
  approximate.error = nan;
  EXPECT_FALSE(Accurate(approximate, DType::kBFloat16, 2e-3));
}

TEST(DecodeReport, RecordsNameKernelDeviceBytesAndWhetherTheyAreRight) {
  const auto record_of = [](const DecodeRow& row, const std::string& device) {
    DecodeLoad load;
    load.shape = {"gqa:4,2,64", GqaShape{4, 2, 64, 0}};
    DecodeReport report(load, device);
    report.Add(row);
    return nlohmann::json::parse(report.records());
  };
  DecodeRow row = Row(1e-3);
  row.bytes_received = 96;
  auto record = record_of(row, "virtual GPU 9.0");
  EXPECT_EQ(record["implementation"], "some-kernel");
  EXPECT_EQ(record["device"], "virtual GPU 9.0");
  EXPECT_EQ(record["bytes_received"], 96);
  EXPECT_TRUE(record["bytes_predicted"].is_null());
  EXPECT_EQ(record["ok"], true);
  row.bytes_predicted = 96;
  record = record_of(row, "");
  EXPECT_EQ(record["device"], "cpu");
  EXPECT_EQ(record["bytes_predicted"], 96);
  EXPECT_EQ(record["ok"], true);
  row.bytes_predicted = 97;
  EXPECT_EQ(record_of(row, "")["ok"], false);
  row.bytes_predicted = 96;
  row.accurate = false;
  EXPECT_EQ(record_of(row, "")["ok"], false);
  row.error = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(record_of(row, "")["error"].is_null());
}

}  // namespace
}  // namespace tessera::launcher
