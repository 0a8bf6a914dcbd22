// mbarriers and cp.async.bulk: plain copies, tensor boxes with every swizzle and with parts outside, stores,
// reductions, clusters.
#include <gtest/gtest.h>

#include "tests/virtual_gpu/ptx/ptx_runner.h"
#include "tests/virtual_gpu/ptx/tensor_map.h"

namespace tessera::vgpu {
namespace {

const std::string kShared = ".extern .shared .align 1024 .b8 smem[];";

// %r0: smem; %r1: an mbarrier behind the first 32 KB; thread 0 is %p1.
const std::string kSetup =
    "  mov.u32 %r0, smem;\n  add.u32 %r1, %r0, 32768;\n  setp.eq.u32 %p1, %t, 0;\n"
    "  @%p1 mbarrier.init.shared::cta.b64 [%r1], 1;\n  fence.mbarrier_init.release.cluster;\n  bar.sync 0;\n";

std::string WaitFor(int parity, const std::string& label) {
  return label + ":\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], " + std::to_string(parity) +
         ";\n  @!%p2 bra " + label + ";\n";
}

// Copies `bytes` of shared memory to %rd1, 128 threads.
std::string Dump(uint32_t bytes) {
  std::string text = "  shl.b32 %r40, %t, 2;\n  add.u32 %r40, %r40, %r0;\n  add.u64 %x5, %rd1, %o4;\n";
  for (uint32_t at = 0; at < bytes; at += 512) {
    text += "  ld.shared.b32 %r41, [%r40+" + std::to_string(at) + "];\n  st.global.b32 [%x5+" + std::to_string(at) +
            "], %r41;\n";
  }
  return text;
}

void ExpectFine(const RunResult& run) {
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
}

TEST(BulkCopyTest, PlainBytesArriveWithTheirMbarrier) {
  std::vector<uint32_t> words(512);
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(i * 3 + 1);
  Device device;
  const uint32_t* from = device.Buffer(words);
  uint32_t* to = device.Buffer(std::vector<uint32_t>(512));
  const std::string text =
      kSetup +
      "  @!%p1 bra Wait;\n  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 2048;\n"
      "  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 2048, [%r1];\n" +
      WaitFor(0, "Wait") + Dump(2048);
  const RunResult run = device.Run(KernelText(text, 2, kShared), {from, to}, {}, {128, 1, 1}, 32768 + 8);
  ExpectFine(run);
  EXPECT_EQ(std::vector<uint32_t>(to, to + 512), words);
  EXPECT_EQ(run.counters.bulk_copy_bytes, 2048u);
}

TEST(BulkCopyTest, StoresAndReductionsReachGlobalMemory) {
  for (const bool add : {false, true}) {
    std::vector<float> words(512);
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<float>(i);
    Device device;
    float* to = device.Buffer(words);
    const std::string text =
        "  mov.u32 %r0, smem;\n  shl.b32 %r2, %t, 4;\n  add.u32 %r3, %r0, %r2;\n  mov.f32 %f0, 0f3F800000;\n"
        "  st.shared.v4.f32 [%r3], {%f0, %f0, %f0, %f0};\n  fence.proxy.async.shared::cta;\n  bar.sync 0;\n"
        "  setp.ne.u32 %p0, %t, 0;\n  @%p0 bra Done;\n  " +
        std::string(add ? "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32"
                        : "cp.async.bulk.global.shared::cta.bulk_group") +
        " [%rd0], [%r0], 2048;\n  cp.async.bulk.commit_group;\n  cp.async.bulk.wait_group 0;\nDone:\n";
    ExpectFine(device.Run(KernelText(text, 1, kShared), {to}, {}, {128, 1, 1}, 2048));
    for (int i = 0; i < 512; ++i) EXPECT_EQ(to[i], add ? i + 1 : 1);
  }
}

struct TensorCase {
  Swizzle swizzle;
  uint32_t columns;  // of the box, 2-byte elements
  int x, y;          // where it begins
};
class TensorCopyTest : public testing::TestWithParam<TensorCase> {};

constexpr uint32_t kRows = 24, kColumns = 80;  // of the tensor

TensorMap MapOf(const uint16_t* base, const TensorCase& test) {
  TensorMap map;
  map.rank = 2;
  map.element_bytes = 2;
  map.swizzle = test.swizzle;
  map.base = reinterpret_cast<uint64_t>(base);
  map.extent[0] = kColumns;
  map.extent[1] = kRows;
  map.box[0] = test.columns;
  map.box[1] = 16;
  map.stride_bytes[0] = kColumns * 2;
  return map;
}

// Where an element of a 16-row box lies: 16-byte chunk c of row r goes to chunk c ^ (r' mod W) of the row's atom, where
// r' counts 128-byte lines.
uint32_t SwizzledOffset(const TensorCase& test, uint32_t row, uint32_t column) {
  const uint32_t bytes = row * test.columns * 2 + column * 2;
  const uint32_t line = bytes / 128, w = 1u << static_cast<int>(test.swizzle);
  const uint32_t chunk = bytes / 16 % 8;
  return line * 128 + (chunk ^ line % w) * 16 + bytes % 16;
}

TEST_P(TensorCopyTest, LoadsABoxAndFillsWhatIsOutsideWithZeros) {
  const TensorCase& test = GetParam();
  std::vector<uint16_t> tensor(kRows * kColumns);
  for (size_t i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<uint16_t>(i + 1);
  Device device;
  const uint16_t* base = device.Buffer(tensor);
  const TensorMap* map = device.Buffer(std::vector<TensorMap>{MapOf(base, test)});
  const uint32_t bytes = 16 * test.columns * 2;
  uint32_t* to = device.Buffer(std::vector<uint32_t>(1024));
  const std::string text = kSetup + "  @!%p1 bra Wait;\n  mov.b32 %r5, " + std::to_string(test.x) +
                           ";\n  mov.b32 %r6, " + std::to_string(test.y) +
                           ";\n  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], " + std::to_string(bytes) +
                           ";\n  cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], "
                           "[%rd0, {%r5, %r6}], [%r1];\n" +
                           WaitFor(0, "Wait") + Dump(bytes);
  ExpectFine(device.Run(KernelText(text, 2, kShared), {map, to}, {}, {128, 1, 1}, 32768 + 8));
  const auto* got = reinterpret_cast<const uint8_t*>(to);
  int wrong = 0;
  for (uint32_t r = 0; r < 16; ++r) {
    for (uint32_t c = 0; c < test.columns; ++c) {
      const int64_t x = int64_t{test.x} + c, y = int64_t{test.y} + r;
      const bool inside = x >= 0 && y >= 0 && x < kColumns && y < kRows;
      uint16_t value;
      std::memcpy(&value, got + SwizzledOffset(test, r, c), 2);
      wrong += value != (inside ? tensor[y * kColumns + x] : 0);
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(TensorCopyTest, StoresABoxAndLeavesOutWhatIsOutside) {
  const TensorCase& test = GetParam();
  Device device;
  uint16_t* base = device.Buffer(std::vector<uint16_t>(kRows * kColumns));
  const TensorMap* map = device.Buffer(std::vector<TensorMap>{MapOf(base, test)});
  const uint32_t bytes = 16 * test.columns * 2;
  // Word i of shared memory is i + 1 in both halves.
  std::string text = "  mov.u32 %r0, smem;\n  shl.b32 %r2, %t, 2;\n  add.u32 %r3, %r0, %r2;\n";
  for (uint32_t at = 0; at < bytes; at += 512) {
    text += "  add.u32 %r4, %t, " + std::to_string(at / 4 + 1) +
            ";\n  mov.b32 {%h0, %h1}, %r4;\n  mov.b32 %r4, {%h0, %h0};\n  st.shared.b32 [%r3+" + std::to_string(at) +
            "], %r4;\n";
  }
  text +=
      "  fence.proxy.async.shared::cta;\n  bar.sync 0;\n  setp.ne.u32 %p0, %t, 0;\n  @%p0 bra Done;\n  mov.b32 %r5, " +
      std::to_string(test.x) + ";\n  mov.b32 %r6, " + std::to_string(test.y) +
      ";\n  cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd0, {%r5, %r6}], [%r0];\n  "
      "cp.async.bulk.commit_group;\n"
      "  cp.async.bulk.wait_group.read 0;\nDone:\n";
  ExpectFine(device.Run(KernelText(text, 1, kShared), {map}, {}, {128, 1, 1}, 4096));
  int wrong = 0;
  for (int y = 0; y < static_cast<int>(kRows); ++y) {
    for (int x = 0; x < static_cast<int>(kColumns); ++x) {
      const int64_t r = y - test.y, c = x - test.x;
      const bool inside = r >= 0 && r < 16 && c >= 0 && c < test.columns;
      wrong += base[y * kColumns + x] != (inside ? SwizzledOffset(test, r, c) / 4 + 1 : 0);
    }
  }
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(All, TensorCopyTest,
                         testing::Values(TensorCase{Swizzle::kNone, 32, 8, 4}, TensorCase{Swizzle::k32, 16, 0, 0},
                                         TensorCase{Swizzle::k64, 32, 48, 8}, TensorCase{Swizzle::k128, 64, 0, 3},
                                         TensorCase{Swizzle::k128, 64, 50, 15}, TensorCase{Swizzle::k128, 64, -5, -7},
                                         TensorCase{Swizzle::kNone, 64, 100, 0}));

TEST(MbarrierTest, PhasesAlternateAndArrivalsAreCounted) {
  Device device;
  uint32_t* out = device.Buffer(std::vector<uint32_t>(128));
  // All 128 threads arrive; after each of four phases everybody passes with the right parity.
  std::string text =
      "  mov.u32 %r0, smem;\n  mov.u32 %r1, smem;\n  setp.eq.u32 %p1, %t, 0;\n  @%p1 mbarrier.init.shared::cta.b64 "
      "[%r1], 128;\n  bar.sync 0;\n"
      "  add.u64 %rd0, %rd0, %o4;\n";
  for (int phase = 0; phase < 4; ++phase) {
    text += "  mbarrier.arrive.shared::cta.b64 %x1, [%r1];\n" + WaitFor(phase % 2, "Wait" + std::to_string(phase)) +
            "  ld.global.b32 %r5, [%rd0];\n  add.u32 %r5, %r5, 1;\n  st.global.b32 [%rd0], %r5;\n";
  }
  ExpectFine(device.Run(KernelText(text, 1, kShared), {out}, {}, {128, 1, 1}, 64));
  for (int t = 0; t < 128; ++t) EXPECT_EQ(out[t], 4u);
}

TEST(MbarrierTest, TestWaitLooksAndTheTokenNamesAPhase) {
  Device device;
  uint32_t* out = device.Buffer(std::vector<uint32_t>(2));
  const std::string text =
      "  mov.u32 %r1, smem;\n  setp.ne.u32 %p1, %t, 0;\n  @%p1 bra Done;\n  mbarrier.init.shared::cta.b64 [%r1], 2;\n"
      "  mbarrier.arrive.shared::cta.b64 %x1, [%r1];\n  mbarrier.test_wait.shared::cta.b64 %p2, [%r1], %x1;\n  "
      "selp.b32 %r2, 1, 0, %p2;\n"
      "  mbarrier.arrive.shared::cta.b64 %x1, [%r1];\n  mbarrier.test_wait.shared::cta.b64 %p2, [%r1], %x1;\n  "
      "selp.b32 %r3, 1, 0, %p2;\n"
      "  st.global.v2.b32 [%rd0], {%r2, %r3};\nDone:\n";
  ExpectFine(device.Run(KernelText(text, 1, kShared), {out}, {}, {32, 1, 1}, 64));
  EXPECT_EQ(out[0], 0u);
  EXPECT_EQ(out[1], 1u);
}

TEST(MbarrierTest, CpAsyncArrivesWhenItsCopiesAreDone) {
  std::vector<uint32_t> words(512);
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(i + 7);
  Device device;
  const uint32_t* from = device.Buffer(words);
  uint32_t* to = device.Buffer(std::vector<uint32_t>(512));
  const std::string text =
      "  mov.u32 %r0, smem;\n  add.u32 %r1, %r0, 4096;\n  setp.eq.u32 %p1, %t, 0;\n  @%p1 "
      "mbarrier.init.shared::cta.b64 [%r1], 128;\n  bar.sync 0;\n"
      "  shl.b32 %r2, %t, 4;\n  add.u32 %r3, %r0, %r2;\n  cvt.u64.u32 %x0, %r2;\n  add.u64 %x1, %rd0, %x0;\n"
      "  cp.async.cg.shared.global [%r3], [%x1], 16;\n  cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r1];\n" +
      WaitFor(0, "Wait") + Dump(2048);
  ExpectFine(device.Run(KernelText(text, 2, kShared), {from, to}, {}, {128, 1, 1}, 4096 + 8));
  EXPECT_EQ(std::vector<uint32_t>(to, to + 512), words);
}

TEST(ClusterTest, BlocksReadEachOthersSharedMemoryAndSignalEachOther) {
  Device device;
  uint32_t* out = device.Buffer(std::vector<uint32_t>(2 * 32));
  const std::string text =
      "  mov.u32 %r0, smem;\n  mov.u32 %r1, %cluster_ctarank;\n  xor.b32 %r2, %r1, 1;\n  shl.b32 %r3, %t, 2;\n  "
      "add.u32 %r4, %r0, %r3;\n"
      "  mad.lo.u32 %r5, %r1, 1000, %t;\n  st.shared.b32 [%r4], %r5;\n  barrier.cluster.arrive.release.aligned;\n  "
      "barrier.cluster.wait.acquire.aligned;\n"
      "  mapa.shared::cluster.u32 %r6, %r4, %r2;\n  ld.shared::cluster.b32 %r7, [%r6];\n"
      "  mov.u32 %r8, %ctaid.x;\n  mul.lo.u32 %r8, %r8, 128;\n  cvt.u64.u32 %x0, %r8;\n  add.u64 %rd0, %rd0, %x0;\n  "
      "add.u64 %rd0, %rd0, %o4;\n"
      "  st.global.b32 [%rd0], %r7;\n  barrier.cluster.arrive.release.aligned;\n  "
      "barrier.cluster.wait.acquire.aligned;\n";
  ExpectFine(device.Run(KernelText(text, 1, kShared), {out}, {2, 1, 1}, {32, 1, 1}, 128, {2, 1, 1}));
  for (int block = 0; block < 2; ++block) {
    for (int t = 0; t < 32; ++t) EXPECT_EQ(out[block * 32 + t], static_cast<uint32_t>((1 - block) * 1000 + t));
  }
}

TEST(ClusterTest, AMulticastLoadReachesEveryBlockOfItsMask) {
  std::vector<uint32_t> words(512);
  for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(i * 5);
  Device device;
  const uint32_t* from = device.Buffer(words);
  uint32_t* to = device.Buffer(std::vector<uint32_t>(1024));
  const std::string text =
      kSetup +
      "  barrier.cluster.arrive.release.aligned;\n  barrier.cluster.wait.acquire.aligned;\n  @!%p1 bra Wait;\n"
      "  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 2048;\n  mov.u32 %r7, %cluster_ctarank;\n  setp.ne.u32 "
      "%p3, %r7, 0;\n"
      "  mov.b16 %h0, 3;\n  @%p3 bra Wait;\n"
      "  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%rd0], 2048, "
      "[%r1], %h0;\n" +
      WaitFor(0, "Wait") + "  mov.u32 %r8, %ctaid.x;\n  mul.wide.u32 %x3, %r8, 2048;\n  add.u64 %rd1, %rd1, %x3;\n" +
      Dump(2048);
  ExpectFine(device.Run(KernelText(text, 2, kShared), {from, to}, {2, 1, 1}, {128, 1, 1}, 32768 + 8, {2, 1, 1}));
  for (int block = 0; block < 2; ++block)
    EXPECT_EQ(std::vector<uint32_t>(to + block * 512, to + block * 512 + 512), words);
}

}  // namespace
}  // namespace tessera::vgpu
