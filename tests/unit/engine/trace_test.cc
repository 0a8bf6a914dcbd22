#include "runtime/engine/trace.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace tessera {
namespace {

TEST(Trace, IsChromeTraceJson) {
  Trace trace;
  trace.rank = 3;
  trace.events.push_back({7, TraceLane::kReceive, "receive", 2000, 5000, 64});
  const auto json = nlohmann::json::parse(ToChromeTrace({trace}), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  const auto& event = json.at("traceEvents").back();
  EXPECT_EQ(event.at("ph"), "X");
  EXPECT_EQ(event.at("pid"), 3);
  EXPECT_EQ(event.at("ts"), 2.0);
  EXPECT_EQ(event.at("dur"), 3.0);
  EXPECT_EQ(event.at("args").at("bytes"), 64);
}

}  // namespace
}  // namespace tessera
