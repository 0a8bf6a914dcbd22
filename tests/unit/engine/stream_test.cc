#include "runtime/device/stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "runtime/device/buffer.h"

namespace tessera {
namespace {

TEST(CpuStream, RunsInOrder) {
  std::vector<int> order;
  CpuStream stream;
  for (int i = 0; i < 100; ++i) {
    stream.Submit([&order, i] {
      order.push_back(i);
      return absl::OkStatus();
    });
  }
  ASSERT_TRUE(stream.Synchronize().ok());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(CpuStream, TheFirstErrorSticksUntilSynchronize) {
  int ran = 0;
  CpuStream stream;
  stream.Submit([] { return absl::InternalError("first"); });
  stream.Submit([&] {
    ++ran;
    return absl::InternalError("second");
  });
  EXPECT_EQ(stream.Synchronize().message(), "first");
  EXPECT_EQ(ran, 0);
  stream.Submit([&] {
    ++ran;
    return absl::OkStatus();
  });
  EXPECT_TRUE(stream.Synchronize().ok());
  EXPECT_EQ(ran, 1);
}

TEST(CpuStream, EventsOrderStreams) {
  std::atomic<int> value = 0;
  CpuStream first, second;
  CpuStream gate;
  CpuEvent opened = gate.Record();
  opened.Wait();
  first.Submit([&] {
    value = 1;
    return absl::OkStatus();
  });
  second.WaitFor(first.Record());
  second.Submit([&] { return value == 1 ? absl::OkStatus() : absl::InternalError("ran early"); });
  EXPECT_TRUE(second.Synchronize().ok());
  EXPECT_TRUE(CpuEvent().Done());
}

TEST(CpuStream, AnEventIsRecordedEvenAfterAnError) {
  CpuStream stream;
  stream.Submit([] { return absl::InternalError("broken"); });
  stream.Record().Wait();
  EXPECT_FALSE(stream.Synchronize().ok());
}

TEST(HostBuffer, RefusesWhatIsNotToBeHad) {
  const auto buffer = HostBuffer::Allocate(int64_t{1} << 60, "the query");
  EXPECT_EQ(buffer.status().message(), "the query needs 1152921504606846976 bytes of memory and they are not to be had");
  EXPECT_EQ(HostBuffer::Allocate(0, "nothing")->data(), nullptr);
}

}  // namespace
}  // namespace tessera
