// Bugs with asynchronous copies and asynchronous products, each planted in a kernel that is right without it.
#include "tests/virtual_gpu/ptx/planted_bug.h"

namespace tessera::vgpu {
namespace {

class PlantedAsyncBugTest : public testing::TestWithParam<BugCase> {};

TEST_P(PlantedAsyncBugTest, IsFoundAndItsTwinPasses) {
  ExpectFoundAndTwinPasses(GetParam());
}

// Thread 0 loads 2048 bytes twice, into two buffers with an mbarrier each; everybody reads both.
const std::string kTwoLoads =
    "  mov.u32 %r0, smem;\n  .shared .align 8 .b8 bars[16];\n  mov.u32 %r1, bars;\n  setp.eq.u32 %p1, %t, 0;\n"
    "  @%p1 mbarrier.init.shared::cta.b64 [%r1], 1;\n  @%p1 mbarrier.init.shared::cta.b64 [%r1+8], 1;\n  bar.sync 0;\n"
    "  @!%p1 bra Wait0;\n  add.u32 %r3, %r0, 2048;\n  add.u32 %r4, %r1, 8;\n  add.u64 %x3, %rd0, 2048;\n"
    "  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 2048;\n"
    "  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 2048, [%r1];\n"
    "  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4], 2048;\n"
    "  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%x3], 2048, [%r4];\n"
    "Wait0:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], 0;\n  @!%p2 bra Wait0;\n"
    "Wait1:\n  mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r1+8], 0;\n  @!%p3 bra Wait1;\n"
    "  shl.b32 %r2, %t, 4;\n  add.u32 %r2, %r2, %r0;\n  ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r2];\n"
    "  ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r2+2048];\n";

// One buffer used twice: the second load must wait until everybody has read what the first one brought.
const std::string kReuse =
    "  mov.u32 %r0, smem;\n  .shared .align 8 .b8 bars[16];\n  mov.u32 %r1, bars;\n  setp.eq.u32 %p1, %t, 0;\n"
    "  @%p1 mbarrier.init.shared::cta.b64 [%r1], 1;\n  @%p1 mbarrier.init.shared::cta.b64 [%r1+8], 128;\n  bar.sync "
    "0;\n"
    "  shl.b32 %r2, %t, 4;\n  add.u32 %r2, %r2, %r0;\n  mov.b32 %r9, 0;\n"
    "Loop:\n  @!%p1 bra Wait;\n  setp.eq.u32 %p4, %r9, 0;\n  @%p4 bra Load;\n"
    "Empty:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1+8], 0;\n  @!%p2 bra Empty;\n"
    "Load:\n  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 2048;\n"
    "  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 2048, [%r1];\n"
    "Wait:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1], %r9;\n  @!%p2 bra Wait;\n"
    "  ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r2];\n  mbarrier.arrive.shared::cta.b64 %x1, [%r1+8];\n"
    "  add.u32 %r9, %r9, 1;\n  setp.lt.u32 %p5, %r9, 2;\n  @%p5 bra Loop;\n";

// Threads write a tile, thread 0 stores it.
const std::string kStore =
    "  mov.u32 %r0, smem;\n  shl.b32 %r2, %t, 4;\n  add.u32 %r3, %r0, %r2;\n  st.shared.v4.b32 [%r3], {%t, %t, %t, "
    "%t};\n"
    "  fence.proxy.async.shared::cta;\n"
    "  bar.sync 0;\n"
    "  setp.ne.u32 %p0, %t, 0;\n  @%p0 bra Done;\n"
    "  cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r0], 2048;\n  cp.async.bulk.commit_group;\n"
    "  cp.async.bulk.wait_group.read 0;\n"
    "  st.shared.b32 [%r0], 5;\n"
    "Done:\n";

// A product of a warpgroup whose operands (both at smem, 128-byte swizzle) were written by its threads.
const std::string kProduct =
    "  .reg .b32 %acc<4>;\n  mov.u32 %r0, smem;\n  shl.b32 %r2, %t, 4;\n  add.u32 %r3, %r0, %r2;\n  mov.b32 %r4, "
    "0x3f803f80;\n"
    "  st.shared.v4.b32 [%r3], {%r4, %r4, %r4, %r4};\n  st.shared.v4.b32 [%r3+2048], {%r4, %r4, %r4, %r4};\n"
    "  mov.b32 %acc0, 0;\n  mov.b32 %acc1, 0;\n  mov.b32 %acc2, 0;\n  mov.b32 %acc3, 0;\n"
    "  fence.proxy.async.shared::cta;\n"
    "  bar.sync 0;\n"
    "  mov.b32 %r5, 1;\n  setp.ne.b32 %p0, %r5, 0;\n  mov.b32 %r6, 0x3f803f80;\n"
    // Start 1024, stride 1024 bytes: 64 and 64 units of 16 bytes.
    "  mov.b64 %x2, 0x4000004000010040;\n"
    "  wgmma.fence.sync.aligned;\n"
    "  wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%acc0, %acc1, %acc2, %acc3}, {%r6, %r6, %r6, %r6}, %x2, "
    "%p0, 1, 1, 0;\n"
    "  wgmma.commit_group.sync.aligned;\n"
    "  wgmma.wait_group.sync.aligned 0;\n"
    "  add.u32 %r9, %acc0, %acc1;\n  bar.sync 0;\n  st.shared.b32 [%r3], 0;\n  st.global.b32 [%rd0], %r9;\n";

const BugCase kBugs[] = {
    {"MissingMbarrierWait", kTwoLoads,
     Without(kTwoLoads,
             "  @!%p2 bra Wait0;\nWait1:\n  mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r1+8], 0;\n  @!%p3 bra "
             "Wait1;\n"),
     FaultKind::kMissingWait, "synchronised with its write by an asynchronous copy"},
    {"WaitOnTheWrongMbarrier", kTwoLoads, With(kTwoLoads, "%p2, [%r1], 0", "%p2, [%r1+8], 0"), FaultKind::kMissingWait,
     "in flight"},
    {"WrongPhaseWaitsForever", kTwoLoads, With(kTwoLoads, "%p2, [%r1], 0", "%p2, [%r1], 1"), FaultKind::kMissingWait,
     "in flight"},
    {"PhaseThatNeverComes", kReuse, With(kReuse, "[%r1+8], 128", "[%r1+8], 129"), FaultKind::kNoProgress,
     "lacks 1 of 129 arrivals"},
    {"BytesThatNeverCome", kTwoLoads, With(kTwoLoads, "[%r4], 2048", "[%r4], 2064"), FaultKind::kNoProgress,
     "and 16 bytes"},
    {"TooManyArrivals", kReuse, With(kReuse, "%x1, [%r1+8]", "%x1, [%r1+8], 200"), FaultKind::kBarrier,
     "more than are expected"},
    {"MbarrierNotInitialised", kTwoLoads, Without(kTwoLoads, "  @%p1 mbarrier.init.shared::cta.b64 [%r1+8], 1;\n"),
     FaultKind::kBarrier, "no mbarrier was initialised"},
    {"BufferReusedBeforeItWasRead", kReuse,
     Without(kReuse, "Empty:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r1+8], 0;\n  @!%p2 bra Empty;\n"),
     FaultKind::kMissingWait, "in flight"},
    {"StoreWithoutProxyFence", kStore, Without(kStore, "  fence.proxy.async.shared::cta;\n"), FaultKind::kMissingFence,
     "no fence.proxy.async"},
    {"StoreWithoutBarrier", kStore, Without(kStore, "  bar.sync 0;\n"), FaultKind::kUninitializedShared,
     "the asynchronous copy"},
    {"StoreSourceReusedTooEarly", kStore, Without(kStore, "  cp.async.bulk.wait_group.read 0;\n"),
     FaultKind::kMissingWait, "while this copy is in flight"},
    {"StoreSourceOverwrittenBeforeTheWait", kStore,
     With(kStore, "  cp.async.bulk.wait_group.read 0;\n  st.shared.b32 [%r0], 5;\n",
          "  st.shared.b32 [%r0], 5;\n  cp.async.bulk.wait_group.read 0;\n"),
     FaultKind::kSharedRace, "without being synchronised with its write"},
    {"MissingWgmmaWait", kProduct, Without(kProduct, "  wgmma.wait_group.sync.aligned 0;\n"), FaultKind::kMissingWait,
     "register that belongs to a wgmma in flight"},
    {"TooShortWgmmaWait", kProduct, With(kProduct, "wait_group.sync.aligned 0", "wait_group.sync.aligned 1"),
     FaultKind::kMissingWait, "wgmma.wait_group is missing or too short"},
    {"WgmmaNotCommitted", kProduct, Without(kProduct, "  wgmma.commit_group.sync.aligned;\n"), FaultKind::kMissingWait,
     "wgmma in flight"},
    {"WgmmaSourceRegisterChanged", kProduct,
     With(kProduct, "  wgmma.wait_group", "  add.u32 %r6, %r6, 1;\n  wgmma.wait_group"), FaultKind::kMissingWait,
     "writes a register"},
    {"WgmmaWithoutProxyFence", kProduct, Without(kProduct, "  fence.proxy.async.shared::cta;\n"),
     FaultKind::kMissingFence, "no fence.proxy.async"},
    {"WgmmaSourceOverwrittenInFlight", kProduct,
     With(kProduct, "  wgmma.wait_group", "  st.shared.b32 [%r3], 0;\n  wgmma.wait_group"), FaultKind::kSharedRace,
     "synchronised"},
    {"BlockEndsBeforeItsCopy", kTwoLoads, With(kTwoLoads, "Wait0:\n", "Wait0:\n  exit;\n"), FaultKind::kMissingWait,
     "the block ends while this copy is in flight"},
};

INSTANTIATE_TEST_SUITE_P(All, PlantedAsyncBugTest, testing::ValuesIn(kBugs),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::vgpu
