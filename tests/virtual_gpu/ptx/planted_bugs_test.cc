// Each class of bug, planted in a kernel that is right without it: the twin
// passes, the bug is named.
#include "tests/virtual_gpu/ptx/planted_bug.h"

namespace tessera::vgpu {
namespace {

class PlantedBugTest : public testing::TestWithParam<BugCase> {};

TEST_P(PlantedBugTest, IsFoundAndItsTwinPasses) {
  ExpectFoundAndTwinPasses(GetParam());
}

// Thread t writes word t and reads word 127 - t.
const std::string kExchange =
    "  .shared .align 16 .b8 tile[512];\n  mov.u32 %r1, tile;\n  shl.b32 %r2, "
    "%t, 2;\n  add.u32 %r3, %r1, %r2;\n"
    "  st.shared.b32 [%r3], %t;\n"
    "  bar.sync 0;\n"
    "  sub.u32 %r4, 508, %r2;\n  add.u32 %r4, %r1, %r4;\n  ld.shared.b32 %r5, "
    "[%r4];\n"
    "  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0], %r5;\n";

// Lane l writes word l and reads word 31 - l of its own warp's 32 words.
const std::string kWarpExchange =
    "  .shared .align 16 .b8 tile[512];\n  mov.u32 %r1, tile;\n  shl.b32 %r2, "
    "%t, 2;\n  add.u32 %r3, %r1, %r2;\n"
    "  st.shared.b32 [%r3], %t;\n"
    "  bar.warp.sync -1;\n"
    "  xor.b32 %r4, %r2, 124;\n  add.u32 %r4, %r1, %r4;\n  ld.shared.b32 %r5, "
    "[%r4];\n";

// Two rounds through the same buffer: the second round's writes must wait for
// the first round's reads.
const std::string kTwoRounds =
    "  .shared .align 16 .b8 tile[512];\n  mov.u32 %r1, tile;\n  shl.b32 %r2, "
    "%t, 2;\n  add.u32 %r3, %r1, %r2;\n"
    "  sub.u32 %r4, 508, %r2;\n  add.u32 %r4, %r1, %r4;\n"
    "  st.shared.b32 [%r3], %t;\n  bar.sync 0;\n  ld.shared.b32 %r5, [%r4];\n"
    "  barrier.sync 1;\n"
    "  st.shared.b32 [%r3], %r5;\n  bar.sync 0;\n  ld.shared.b32 %r5, [%r4];\n";

// Warp 3 reads what warp 0 wrote; then warp 0 writes again.
const std::string kReadThenWrite =
    "  .shared .align 16 .b8 tile[512];\n  mov.u32 %r1, tile;\n  shl.b32 %r2, "
    "%t, 2;\n  add.u32 %r3, %r1, %r2;\n"
    "  setp.ge.u32 %p0, %t, 96;\n  setp.lt.u32 %p1, %t, 32;\n"
    "  st.shared.b32 [%r3], %t;\n  bar.sync 0;\n  @%p0 ld.shared.b32 %r5, "
    "[%r3+-384];\n"
    "  barrier.sync 1;\n"
    "  @%p1 st.shared.b32 [%r3], 7;\n";

// Each thread copies 16 bytes twice into two buffers, then reads the first one.
const std::string kCopies =
    "  .shared .align 16 .b8 tile[4096];\n  mov.u32 %r1, tile;\n  shl.b32 %r2, "
    "%t, 4;\n  add.u32 %r3, %r1, %r2;\n"
    "  add.u32 %r4, %r3, 2048;\n  cvt.u64.u32 %x0, %r2;\n  add.u64 %x1, %rd0, "
    "%x0;\n"
    "  cp.async.cg.shared.global [%r3], [%x1], 16;\n  cp.async.commit_group;\n"
    "  cp.async.cg.shared.global [%r4], [%x1+2048], 16;\n  "
    "cp.async.commit_group;\n"
    "  cp.async.wait_group 1;\n"
    "  bar.sync 0;\n"
    "  sub.u32 %r5, 2032, %r2;\n  add.u32 %r5, %r1, %r5;\n  ld.shared.v4.b32 "
    "{%r6, %r7, %r8, %r9}, [%r5];\n";

const BugCase kBugs[] = {
    {"MissingSyncthreads", kExchange, Without(kExchange, "  bar.sync 0;\n"), FaultKind::kUninitializedShared,
     "never written"},
    {"MissingSyncthreadsSecondRound", kTwoRounds, Without(kTwoRounds, "  barrier.sync 1;\n"), FaultKind::kSharedRace,
     "read without being synchronised with its write by warp"},
    {"MissingSyncthreadsAfterRead", kReadThenWrite, Without(kReadThenWrite, "  barrier.sync 1;\n"),
     FaultKind::kSharedRace, "written without being synchronised with its read by warp 3"},
    {"MissingSyncthreadsOverOldBytes",
     With(kExchange, "  st.shared", "  st.shared.b32 [%r3], 0;\n  barrier.sync 2;\n  st.shared"),
     Without(With(kExchange, "  st.shared", "  st.shared.b32 [%r3], 0;\n  barrier.sync 2;\n  st.shared"),
             "  bar.sync 0;\n"),
     FaultKind::kSharedRace, "without being synchronised"},
    {"MissingSyncwarp", kWarpExchange, Without(kWarpExchange, "  bar.warp.sync -1;\n"), FaultKind::kSharedRace,
     "of the same warp"},
    {"MissingCopyWait", kCopies, Without(kCopies, "  cp.async.wait_group 1;\n"), FaultKind::kMissingWait,
     "copy into it is in flight"},
    {"TooShortCopyWait", kCopies, With(kCopies, "wait_group 1", "wait_group 2"), FaultKind::kMissingWait,
     "cp.async.cg.shared.global"},
    {"CopyWaitWithoutBarrier", kCopies, Without(kCopies, "  bar.sync 0;\n"), FaultKind::kUninitializedShared,
     "never written"},
    {"GlobalOutOfBounds", "  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0+15872], %t;\n",
     "  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0+15876], %t;\n", FaultKind::kOutOfBounds,
     "0 bytes past the end of the allocation of 16384 bytes"},
    {"SharedOutOfBounds",
     "  .shared .align 4 .b8 s[512];\n  mov.u32 %r1, s;\n  st.shared.b32 "
     "[%r1+508], 1;\n",
     "  .shared .align 4 .b8 s[512];\n  mov.u32 %r1, s;\n  st.shared.b32 "
     "[%r1+4608], 1;\n",
     FaultKind::kOutOfBounds, "the block has 4608 bytes"},
    {"LocalOutOfBounds",
     "  .local .align 4 .b8 l[16];\n  mov.u64 %x0, l;\n  st.local.b32 "
     "[%x0+12], %t;\n",
     "  .local .align 4 .b8 l[16];\n  mov.u64 %x0, l;\n  st.local.b32 "
     "[%x0+16], %t;\n",
     FaultKind::kOutOfBounds, "local memory of 16 bytes"},
    {"Misaligned", "  ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+16];\n",
     "  ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+8];\n", FaultKind::kMisaligned, "no multiple of the 16 bytes"},
    {"UninitialisedShared",
     "  .shared .align 4 .b8 s[512];\n  mov.u32 %r1, s;\n  st.shared.b32 "
     "[%r1], 7;\n  bar.sync 0;\n  ld.shared.b32 "
     "%r2, [%r1];\n",
     "  .shared .align 4 .b8 s[512];\n  mov.u32 %r1, s;\n  st.shared.b32 "
     "[%r1], 7;\n  bar.sync 0;\n  ld.shared.b32 "
     "%r2, [%r1+4];\n",
     FaultKind::kUninitializedShared, "never written by this block"},
    {"AtomicsReadWithoutBarrier",
     "  .shared .align 4 .b8 s[4];\n  mov.u32 %r1, s;\n  atom.shared.exch.b32 "
     "%r2, [%r1], 7;\n  bar.sync 0;\n  ld.shared.b32 %r2, [%r1];\n",
     "  .shared .align 4 .b8 s[4];\n  mov.u32 %r1, s;\n  atom.shared.exch.b32 "
     "%r2, [%r1], 7;\n  ld.shared.b32 %r2, [%r1];\n",
     FaultKind::kSharedRace, "without being synchronised with its write"},
    {"BarrierOfTooManyThreads", "  bar.sync 1, 128;\n", "  bar.sync 1, 160;\n", FaultKind::kNoProgress,
     "bar.sync 1, 160"},
    {"BarrierInABranch", "  setp.lt.u32 %p0, %t, 64;\n  @%p0 bra L;\n  bar.sync 1, 64;\nL:\n",
     "  setp.lt.u32 %p0, %t, 65;\n  @%p0 bra L;\n  bar.sync 1, 64;\n  bra.uni "
     "M;\nL:\n  bar.sync 2, 96;\nM:\n",
     FaultKind::kBarrier, "lanes of a warp wait"},
    {"BarriersWithDifferentCounts", "  bar.sync 1, 128;\n",
     "  setp.lt.u32 %p0, %t, 32;\n  @%p0 bra L;\n  bar.sync 1, 128;\n  bra.uni "
     "M;\nL:\n  bar.sync 1, 96;\nM:\n",
     FaultKind::kBarrier, "is joined while warps wait in it"},
    {"ShuffleFromALaneThatIsNotThere", "  shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;\n",
     "  setp.eq.u32 %p0, %t, 3;\n  @%p0 bra L;\n  shfl.sync.bfly.b32 %r1, %t, "
     "1, 31, 0xfffffff7;\nL:\n",
     FaultKind::kBarrier, "does not take part"},
    {"Trap", "  setp.gt.u32 %p0, %t, 127;\n  @%p0 trap;\n", "  setp.gt.u32 %p0, %t, 126;\n  @%p0 trap;\n",
     FaultKind::kTrap, "thread (127, 0, 0)"},
    {"UnknownInstruction",
     "  setp.gt.u32 %p0, %t, 127;\n  @%p0 vabsdiff4.u32.u32.u32.add %r1, %t, "
     "%t, %t;\n",
     "  vabsdiff4.u32.u32.u32.add %r1, %t, %t, %t;\n", FaultKind::kUnknownInstruction, "vabsdiff4.u32.u32.u32.add"},
};

INSTANTIATE_TEST_SUITE_P(All, PlantedBugTest, testing::ValuesIn(kBugs),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::vgpu
