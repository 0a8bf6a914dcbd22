// Divergence and coming together again, loops, calls, branch tables, what lanes tell each other, atomics, memory
// spaces.
#include <gtest/gtest.h>

#include <random>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {
namespace {

// Each lane l gets input l (32 bits); `body` computes %result from %a.
std::vector<uint64_t> PerLane(const std::string& body, std::vector<uint64_t> a = {}) {
  if (a.empty()) {
    for (uint64_t l = 0; l < 32; ++l) a.push_back(l);
  }
  std::string error;
  const auto out = Evaluate(body, {a, {}, {}}, 32, 32, &error);
  EXPECT_EQ(error, "");
  return out.size() == 32 ? out : std::vector<uint64_t>(32, 0xdead);
}

TEST(DivergenceTest, LanesLoopAsOftenAsTheyWantAndMeetAgain) {
  // Collatz steps of a + 1; afterwards a shuffle needs everybody.
  const auto out = PerLane(
      "  .reg .b32 %n, %s, %odd, %h;\n  add.u32 %n, %a, 1;\n  mov.b32 %s, 0;\nLoop:\n  setp.eq.u32 %p0, %n, 1;\n  @%p0 "
      "bra Done;\n"
      "  and.b32 %odd, %n, 1;\n  setp.eq.u32 %p1, %odd, 1;\n  @%p1 bra Odd;\n  shr.u32 %n, %n, 1;\n  bra.uni Next;\n"
      "Odd:\n  mad.lo.u32 %n, %n, 3, 1;\nNext:\n  add.u32 %s, %s, 1;\n  bra Loop;\nDone:\n"
      "  shfl.sync.idx.b32 %h, %s, 26, 31, -1;\n  mad.lo.u32 %result, %h, 1000, %s;\n");
  const auto steps = [](uint64_t n) {
    uint64_t s = 0;
    for (; n != 1; ++s) n = n % 2 == 1 ? 3 * n + 1 : n / 2;
    return s;
  };
  for (uint64_t l = 0; l < 32; ++l) EXPECT_EQ(out[l], steps(27) * 1000 + steps(l + 1)) << l;
}

TEST(DivergenceTest, LanesThatEndEarlyAreNotWaitedFor) {
  const auto out = PerLane(
      "  mov.b32 %result, 7;\n  add.u64 %x1, %rd3, %o8;\n  st.global.b32 [%x1], %result;\n  setp.lt.u32 %p0, %a, 20;\n "
      " @%p0 exit;\n"
      "  vote.sync.ballot.b32 %result, 1, -1;\n");
  for (int l = 0; l < 32; ++l) EXPECT_EQ(out[l], l < 20 ? 7u : 0xfff00000u);
}

TEST(DivergenceTest, BothSidesOfABranchMaySynchroniseTheirOwnLanes) {
  const auto out = PerLane(
      "  setp.lt.u32 %p0, %a, 8;\n  @%p0 bra Low;\n  redux.sync.add.u32 %result, %a, 0xffffff00;\n  bra Done;\n"
      "Low:\n  redux.sync.max.u32 %result, %a, 0x000000ff;\nDone:\n");
  for (int l = 0; l < 32; ++l) EXPECT_EQ(out[l], l < 8 ? 7u : 31u * 32 / 2 - 28);
}

TEST(ControlTest, BranchTables) {
  const auto out = PerLane(
      "  .reg .b32 %k;\n  and.b32 %k, %a, 3;\nTable:\n  .branchtargets A, B, C, D;\n  brx.idx %k, Table;\n"
      "A:\n  mov.b32 %result, 10;\n  bra End;\nB:\n  mov.b32 %result, 20;\n  bra End;\nC:\n  mov.b32 %result, 30;\n  "
      "bra End;\n"
      "D:\n  mov.b32 %result, 40;\nEnd:\n  add.u32 %result, %result, %a;\n");
  for (uint64_t l = 0; l < 32; ++l) EXPECT_EQ(out[l], (l % 4 + 1) * 10 + l);
}

TEST(ControlTest, DeviceFunctionsTakeAndReturnValuesAlsoUnderDivergence) {
  Device device;
  uint32_t* out = device.Buffer(std::vector<uint32_t>(32));
  const std::string function =
      ".func (.param .b32 result) inner(.param .b32 x, .param .b64 y)\n{\n  .reg .b32 %r<4>;\n  .reg .b64 %rd<2>;\n  "
      ".reg .pred %p<2>;\n"
      "  ld.param.b32 %r1, [x];\n  ld.param.b64 %rd1, [y];\n  cvt.u32.u64 %r2, %rd1;\n  setp.gt.u32 %p1, %r1, 10;\n  "
      "@%p1 bra Big;\n"
      "  add.u32 %r3, %r1, %r2;\n  st.param.b32 [result], %r3;\n  ret;\nBig:\n  sub.u32 %r3, %r1, %r2;\n  st.param.b32 "
      "[result], %r3;\n  ret;\n}\n"
      ".func (.param .b32 result) outer(.param .b32 x)\n{\n  .reg .b32 %r<4>;\n  ld.param.b32 %r1, [x];\n"
      "  { .param .b32 p0; .param .b64 p1; .param .b32 v; st.param.b32 [p0], %r1; st.param.b64 [p1], 5;\n  call.uni "
      "(v), inner, (p0, p1);\n"
      "  ld.param.b32 %r2, [v]; }\n  mul.lo.u32 %r2, %r2, 2;\n  st.param.b32 [result], %r2;\n  ret;\n}\n";
  const std::string text =
      "  mov.b32 %r2, 0;\n  setp.lt.u32 %p0, %t, 3;\n  @%p0 bra Skip;\n"
      "  { .param .b32 p0; .param .b32 v; st.param.b32 [p0], %t;\n  call.uni (v), outer, (p0);\n  ld.param.b32 %r2, "
      "[v]; }\n"
      "Skip:\n  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0], %r2;\n";
  const RunResult run = device.Run(KernelText(text, 1, function), {out});
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  for (uint32_t l = 0; l < 32; ++l) EXPECT_EQ(out[l], l < 3 ? 0 : 2 * (l > 10 ? l - 5 : l + 5));
}

TEST(ShuffleTest, EveryModeWithSegmentsAndClamps) {
  std::mt19937 random(5);
  for (const std::string mode : {"up", "down", "bfly", "idx"}) {
    for (const int width : {32, 16, 8}) {
      for (int round = 0; round < 4; ++round) {
        const int amount = static_cast<int>(random() % 32);
        // As __shfl_*_sync of this width passes it: the clamp is 0 for up.
        const int c = (32 - width) << 8 | (mode == "up" ? 0 : 31);
        const auto out =
            PerLane("  .reg .b32 %v;\n  mul.lo.u32 %v, %a, 10;\n  shfl.sync." + mode + ".b32 %result|%p1, %v, " +
                    std::to_string(amount) + ", " + std::to_string(c) + ", -1;\n  @%p1 add.u32 %result, %result, 1;\n");
        for (int l = 0; l < 32; ++l) {
          const int base = l / width * width, at = l % width;
          int from = mode == "up"     ? at - amount
                     : mode == "down" ? at + amount
                     : mode == "bfly" ? at ^ amount
                                      : amount % width;
          // bfly beyond its segment's end reads its own value; towards lower segments it may go.
          int source = mode == "bfly" ? l ^ amount : base + from;
          const bool ok = mode == "bfly" ? source <= base + width - 1 : from >= 0 && from < width;
          if (!ok) source = l;
          EXPECT_EQ(out[l], static_cast<uint64_t>(source * 10 + ok))
              << mode << " " << width << " " << amount << " lane " << l;
        }
      }
    }
  }
}

TEST(ShuffleTest, VotesMatchesAndElections) {
  EXPECT_EQ(PerLane("  setp.lt.u32 %p0, %a, 5;\n  vote.sync.ballot.b32 %result, %p0, -1;\n")[9], 31u);
  EXPECT_EQ(
      PerLane("  setp.lt.u32 %p0, %a, 5;\n  vote.sync.any.pred %p1, %p0, -1;\n  selp.b32 %result, 1, 0, %p1;\n")[9],
      1u);
  EXPECT_EQ(
      PerLane("  setp.lt.u32 %p0, %a, 5;\n  vote.sync.all.pred %p1, %p0, -1;\n  selp.b32 %result, 1, 0, %p1;\n")[9],
      0u);
  EXPECT_EQ(
      PerLane("  setp.lt.u32 %p0, %a, 5;\n  vote.sync.all.pred %p1, !%p0, -1;\n  selp.b32 %result, 1, 0, %p1;\n")[9],
      0u);
  EXPECT_EQ(PerLane("  .reg .b32 %k;\n  and.b32 %k, %a, 7;\n  match.any.sync.b32 %result, %k, -1;\n")[10], 0x04040404u);
  EXPECT_EQ(PerLane("  activemask.b32 %result;\n")[3], 0xffffffffu);
  const auto elected = PerLane("  elect.sync %result|%p1, 0xfffffff0;\n  @%p1 add.u32 %result, %result, 100;\n");
  EXPECT_EQ(elected[4], 104u);
  EXPECT_EQ(elected[9], 4u);
  EXPECT_EQ(PerLane("  mov.u32 %result, %lanemask_lt;\n")[4], 15u);
}

TEST(BarrierTest, ReductionsGiveEveryThreadTheResult) {
  Device device;
  uint32_t* out = device.Buffer(std::vector<uint32_t>(96));
  const std::string text =
      "  setp.lt.u32 %p0, %t, 40;\n  bar.red.popc.u32 %r1, 0, %p0;\n  bar.red.and.pred %p1, 1, %p0;\n  bar.red.or.pred "
      "%p2, 2, %p0;\n"
      "  selp.b32 %r2, 1000, 0, %p1;\n  selp.b32 %r3, 2000, 0, %p2;\n  add.u32 %r1, %r1, %r2;\n  add.u32 %r1, %r1, "
      "%r3;\n"
      "  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0], %r1;\n";
  const RunResult run = device.Run(KernelText(text, 1), {out}, {}, {96, 1, 1});
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  for (int t = 0; t < 96; ++t) EXPECT_EQ(out[t], 2040u);
}

TEST(AtomicTest, EveryOperationOnGlobalAndSharedMemory) {
  // Eight blocks on two threads: 8 * 64 atomics on each word.
  Device device;
  std::vector<uint32_t> words(16);
  words[2] = 0xffffffff;  // and
  words[5] = 1000;        // min
  uint32_t* out = device.Buffer(words);
  const std::string text =
      "  atom.global.add.u32 %r1, [%rd0], 1;\n  red.global.or.b32 [%rd0+4], %t;\n  red.global.and.b32 [%rd0+8], "
      "0xfffffff0;\n"
      "  red.global.xor.b32 [%rd0+12], 1;\n  red.global.max.s32 [%rd0+16], %t;\n  red.global.min.u32 [%rd0+20], %t;\n"
      "  red.global.add.f32 [%rd0+24], 0f3F000000;\n  atom.global.inc.u32 %r2, [%rd0+28], 9;\n  red.global.add.u64 "
      "[%rd0+32], 4294967296;\n"
      "  red.global.add.noftz.bf16x2 [%rd0+40], 0x3f803f80;\n  red.global.add.noftz.f16x2 [%rd0+44], 0x3c003c00;\n"
      "  .shared .align 4 .b8 s[4];\n  mov.u32 %r3, s;\n  setp.eq.u32 %p0, %t, 0;\n  @%p0 st.shared.b32 [%r3], 0;\n  "
      "bar.sync 0;\n"
      "  atom.shared.add.u32 %r4, [%r3], 2;\n  bar.sync 0;\n  ld.shared.b32 %r5, [%r3];\n  @%p0 red.global.max.u32 "
      "[%rd0+48], %r5;\n"
      "Again:\n  atom.global.or.b32 %r6, [%rd0+52], 0;\n  add.u32 %r7, %r6, 3;\n  atom.global.cas.b32 %r8, [%rd0+52], "
      "%r6, "
      "%r7;\n  setp.ne.u32 %p1, %r8, %r6;\n"
      "  @%p1 bra Again;\n";
  const RunResult run = device.Run(KernelText(text, 1), {out}, {8, 1, 1}, {64, 1, 1}, 0, {}, 2);
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  EXPECT_EQ(out[0], 512u);
  EXPECT_EQ(out[1], 63u);
  EXPECT_EQ(out[2], 0xfffffff0u);
  EXPECT_EQ(out[3], 0u);
  EXPECT_EQ(out[4], 63u);
  EXPECT_EQ(out[5], 0u);
  EXPECT_EQ(std::bit_cast<float>(out[6]), 256.0f);
  EXPECT_EQ(out[7], 512u % 10);
  EXPECT_EQ(out[9], 512u);
  EXPECT_EQ(out[10], 0x43804380u);  // 256 + 1 is 256 in bf16
  EXPECT_EQ(out[11], 0x60006000u);  // 512
  EXPECT_EQ(out[12], 128u);
  EXPECT_EQ(out[13], 512u * 3);
}

TEST(MemoryTest, NarrowTypesVectorsAndSpaces) {
  Device device;
  const std::vector<uint8_t> bytes = {0x80, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  const uint8_t* in = device.Buffer(bytes);
  uint32_t* out = device.Buffer(std::vector<uint32_t>(32));
  const std::string globals =
      ".const .align 4 .b8 table[8] = {1, 0, 0, 0, 42, 0, 0, 0};\n.global .align 8 .u64 pointer = "
      "generic(table);\n.global .align 4 .f32 half = 0f3F000000;\n";
  const std::string text =
      "  setp.ne.u32 %p0, %t, 0;\n  @%p0 bra Done;\n  ld.global.s8 %r1, [%rd0];\n  ld.global.u8 %r2, [%rd0];\n  "
      "ld.global.s16 %x1, [%rd0];\n"
      "  st.global.b32 [%rd1], %r1;\n  st.global.b32 [%rd1+4], %r2;\n  st.global.u64 [%rd1+8], %x1;\n"
      "  ld.global.nc.v2.b64 {%x2, %x3}, [%rd0];\n  st.global.v2.b64 [%rd1+16], {%x2, %x3};\n"
      "  ld.const.b32 %r3, [table+4];\n  st.global.b32 [%rd1+32], %r3;\n  ld.global.u64 %x4, [pointer];\n  ld.b32 %r4, "
      "[%x4+4];\n  st.global.b32 [%rd1+36], %r4;\n"
      "  ld.global.f32 %f1, [half];\n  st.global.f32 [%rd1+40], %f1;\n"
      "  .local .align 8 .b8 frame[16];\n  mov.u64 %x5, frame;\n  st.local.v2.b32 [%x5], {%r1, %r2};\n  cvta.local.u64 "
      "%x6, %x5;\n  ld.b32 %r5, [%x6+4];\n  st.global.b32 [%rd1+44], %r5;\n"
      "  .shared .align 8 .b8 cell[8];\n  mov.u32 %r6, cell;\n  st.shared.b16 [%r6+2], %h0;\n  mov.b32 %r7, 77;\n  "
      "st.shared.b32 [%r6], %r7;\n  cvt.u64.u32 %x7, %r6;\n  cvta.shared.u64 %x8, %x7;\n"
      "  ld.b32 %r8, [%x8];\n  st.global.b32 [%rd1+48], %r8;\n  cvta.to.shared.u64 %x9, %x8;\n  cvt.u32.u64 %r9, "
      "%x9;\n  sub.u32 %r9, %r9, %r6;\n  st.global.b32 [%rd1+52], %r9;\n"
      "Done:\n";
  const RunResult run = device.Run(KernelText(text, 2, globals), {in, out});
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  EXPECT_EQ(out[0], 0xffffff80u);
  EXPECT_EQ(out[1], 0x80u);
  EXPECT_EQ(out[2], 0xffffff80u);
  EXPECT_EQ(out[3], 0xffffffffu);
  EXPECT_EQ(std::memcmp(out + 4, bytes.data(), 16), 0);
  EXPECT_EQ(out[8], 42u);
  EXPECT_EQ(out[9], 42u);
  EXPECT_EQ(std::bit_cast<float>(out[10]), 0.5f);
  EXPECT_EQ(out[11], 0x80u);
  EXPECT_EQ(out[12], 77u);
  EXPECT_EQ(out[13], 0u);
}

TEST(CounterTest, CoalescingAndBankConflicts) {
  Device device;
  uint32_t* buffer = device.Buffer(std::vector<uint32_t>(32 * 32));
  // Consecutive words: 4 sectors. Words 128 bytes apart: 32 sectors.
  const std::string text =
      "  .shared .align 4 .b8 s[4096];\n  mov.u32 %r0, s;\n  add.u64 %x0, %rd0, %o4;\n  ld.global.b32 %r1, [%x0];\n  "
      "shl.b32 %r2, %t, 7;\n  cvt.u64.u32 %x1, %r2;\n"
      "  add.u64 %x2, %rd0, %x1;\n  ld.global.b32 %r3, [%x2];\n"
      "  shl.b32 %r4, %t, 2;\n  add.u32 %r5, %r0, %r4;\n  st.shared.b32 [%r5], %r1;\n  add.u32 %r6, %r0, %r2;\n  "
      "st.shared.b32 [%r6], %r1;\n";
  const RunResult run = device.Run(KernelText(text, 1), {buffer});
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  EXPECT_EQ(run.counters.global_sectors, 4u + 32u);
  EXPECT_EQ(run.counters.global_ideal_sectors, 4u + 4u);
  EXPECT_EQ(run.counters.shared_passes, 1u + 32u);
  EXPECT_EQ(run.counters.BankConflicts(), 31u);
  EXPECT_EQ(run.counters.global_read_bytes, 256u);
  EXPECT_EQ(run.counters.Of(InstructionClass::kGlobalLoad), 2u);
  EXPECT_NE(Table("test", run.counters).find("of them bank conflicts"), std::string::npos);
}

TEST(ParseTest, ErrorsNameTheLineAndLaunchesAreChecked) {
  std::string error;
  EXPECT_EQ(Module::Parse(".version 9.0\n.visible .entry k()\n{\n  @%p bra L;\n}\n", &error), nullptr);
  EXPECT_NE(error.find("line 4"), std::string::npos) << error;
  EXPECT_EQ(Module::Parse(".visible .entry k()\n{\n  bra Nowhere;\n}\n", &error), nullptr);
  EXPECT_NE(error.find("unknown label Nowhere"), std::string::npos) << error;
  EXPECT_EQ(Module::Parse(".global .align 4 .q32 x;\n", &error), nullptr);
  EXPECT_NE(error.find("unknown word .q32"), std::string::npos) << error;
  Device device;
  const RunResult threads = device.Run(KernelText("", 0), {}, {}, {1025, 1, 1});
  ASSERT_TRUE(threads.fault.has_value());
  EXPECT_NE(threads.fault->message.find("has 1025 threads; allowed: 1 to 1024"), std::string::npos)
      << threads.fault->message;
  const RunResult parameters = device.Run(KernelText("", 1), {});
  ASSERT_TRUE(parameters.fault.has_value());
  EXPECT_NE(parameters.fault->message.find("0 bytes of parameters; the kernel has 8"), std::string::npos);
  const RunResult shared = device.Run(KernelText("", 0), {}, {}, {32, 1, 1}, 300000);
  ASSERT_TRUE(shared.fault.has_value());
  EXPECT_NE(shared.fault->message.find("300000 bytes of shared memory"), std::string::npos);
}

TEST(AddressSpaceTest, KnowsWhereAllocationsAre) {
  AddressSpace space;
  EXPECT_TRUE(space.Add(0x1000, 0x100));
  EXPECT_FALSE(space.Add(0x10ff, 1));
  EXPECT_FALSE(space.Add(0x3000, 0));
  EXPECT_TRUE(space.Add(0x2000, 0x100));
  EXPECT_TRUE(space.Contains(0x10fc, 4));
  EXPECT_FALSE(space.Contains(0x10fd, 4));
  EXPECT_EQ(space.Describe(0x1108), "8 bytes past the end of the allocation of 256 bytes at 0x1000");
  EXPECT_EQ(space.Describe(0x1ffe), "2 bytes before the allocation of 256 bytes at 0x2000");
  EXPECT_TRUE(space.Remove(0x1000));
  EXPECT_FALSE(space.Remove(0x1000));
  EXPECT_FALSE(space.Contains(0x1000, 1));
}

}  // namespace
}  // namespace tessera::vgpu
