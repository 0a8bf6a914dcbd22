// mma.sync, ldmatrix and stmatrix. Fragments are filled by the formulas of the PTX ISA's figures, written out here a
// second time: for 16-bit m16n8k16, group = lane / 4, member = lane % 4,
//   A: row = group for a0 a1 a4 a5, group + 8 for a2 a3 a6 a7; col = 2 member + (i & 1), + 8 for i >= 4
//   B: row = 2 member + (i & 1), + 8 for i >= 2; col = group
//   C: row = group for c0 c1, group + 8 for c2 c3; col = 2 member + (i & 1)
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {
namespace {

uint16_t ToBf16Bits(float value) {  // of values that are exact in bf16
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}
uint16_t ToF16Bits(float value) {  // of small integers and halves of them
  if (value == 0) return 0;
  const int exponent = std::ilogb(value);
  const int mantissa = static_cast<int>(std::ldexp(std::fabs(value), 10 - exponent)) & 0x3ff;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | mantissa);
}
float FromF16Bits(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const float magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

struct MmaCase {
  std::string shape, type;
  int k;
  bool half_accumulator;
};
class MmaTest : public testing::TestWithParam<MmaCase> {};

TEST_P(MmaTest, MatchesTheProductOfItsMatrices) {
  const MmaCase& test = GetParam();
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(test.shape + test.type)));
  std::uniform_int_distribution<int> small(-8, 8);
  const int k = test.k;
  std::vector<float> A(16 * k), B(k * 8), C(16 * 8);
  for (auto* m : {&A, &B, &C}) {
    for (float& v : *m) v = static_cast<float>(small(random)) / 2;  // exact in every type, and so are all sums
  }
  const auto bits = [&](float v) { return test.type == "bf16" ? ToBf16Bits(v) : ToF16Bits(v); };
  const int a_registers = k / 4, b_registers = k / 8, c_registers = test.half_accumulator ? 2 : 4;
  const int inputs = a_registers + b_registers + c_registers;
  std::vector<uint32_t> in(32 * inputs);
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, member = lane % 4;
    uint32_t* at = &in[lane * inputs];
    for (int i = 0; i < 2 * a_registers; ++i) {
      const int row = i % 4 < 2 ? group : group + 8, col = 2 * member + (i & 1) + (i >= 4 ? 8 : 0);
      at[i / 2] |= uint32_t{bits(A[row * k + col])} << (16 * (i & 1));
    }
    at += a_registers;
    for (int i = 0; i < 2 * b_registers; ++i) {
      const int row = 2 * member + (i & 1) + (i >= 2 ? 8 : 0);
      at[i / 2] |= uint32_t{bits(B[row * 8 + group])} << (16 * (i & 1));
    }
    at += b_registers;
    for (int i = 0; i < 4; ++i) {
      const float c = C[(i < 2 ? group : group + 8) * 8 + 2 * member + (i & 1)];
      if (test.half_accumulator) {
        at[i / 2] |= uint32_t{ToF16Bits(c)} << (16 * (i & 1));
      } else {
        at[i] = std::bit_cast<uint32_t>(c);
      }
    }
  }
  Device device;
  const uint32_t* from = device.Buffer(in);
  uint32_t* to = device.Buffer(std::vector<uint32_t>(32 * c_registers));
  std::string text = "  mul.wide.u32 %x0, %t, " + std::to_string(4 * inputs) +
                     ";\n  add.u64 %rd0, %rd0, %x0;\n  mul.wide.u32 %x1, %t, " + std::to_string(4 * c_registers) +
                     ";\n  add.u64 %rd1, %rd1, %x1;\n";
  for (int i = 0; i < inputs; ++i)
    text += "  ld.global.b32 %r" + std::to_string(i) + ", [%rd0+" + std::to_string(4 * i) + "];\n";
  const auto list = [](int first, int count) {
    std::string out = "{";
    for (int i = 0; i < count; ++i) out += (i > 0 ? ", %r" : "%r") + std::to_string(first + i);
    return out + "}";
  };
  const std::string accumulator = test.half_accumulator ? "f16" : "f32";
  text += "  mma.sync.aligned." + test.shape + ".row.col." + accumulator + "." + test.type + "." + test.type + "." +
          accumulator + " " + list(40, c_registers) + ", " + list(0, a_registers) + ", " +
          list(a_registers, b_registers) + ", " + list(a_registers + b_registers, c_registers) + ";\n";
  for (int i = 0; i < c_registers; ++i)
    text += "  st.global.b32 [%rd1+" + std::to_string(4 * i) + "], %r" + std::to_string(40 + i) + ";\n";
  const RunResult run = device.Run(KernelText(text, 2), {from, to});
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  EXPECT_EQ(run.counters.tensor_flops, 2u * 16 * 8 * k);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), col = 2 * (lane % 4) + (i & 1);
      double expected = C[row * 8 + col];
      for (int j = 0; j < k; ++j) expected += static_cast<double>(A[row * k + j]) * B[j * 8 + col];
      const uint32_t* out = to + lane * c_registers;
      const float got = test.half_accumulator ? FromF16Bits(static_cast<uint16_t>(out[i / 2] >> (16 * (i & 1))))
                                              : std::bit_cast<float>(out[i]);
      EXPECT_EQ(got, expected) << "row " << row << " column " << col;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MmaTest,
                         testing::Values(MmaCase{"m16n8k16", "bf16", 16, false}, MmaCase{"m16n8k16", "f16", 16, false},
                                         MmaCase{"m16n8k8", "bf16", 8, false}, MmaCase{"m16n8k8", "f16", 8, false},
                                         MmaCase{"m16n8k16", "f16", 16, true}, MmaCase{"m16n8k8", "f16", 8, true}));

// Lane l passes the address of row l; matrix m's rows are 8m to 8m + 7.
constexpr char kFillShared[] =
    "  .shared .align 16 .b8 tile[512];\n"
    "  shl.b32 %r0, %t, 4;\n  mov.u32 %r1, tile;\n  add.u32 %r2, %r1, %r0;\n  cvt.u64.u32 %x0, %r0;\n  add.u64 %x1, "
    "%rd0, %x0;\n"
    "  ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%x1];\n  st.shared.v4.b32 [%r2], {%r4, %r5, %r6, %r7};\n  bar.warp.sync "
    "-1;\n";

TEST(MatrixLoadTest, LdmatrixGivesEachLaneItsPairOfARow) {
  for (const bool transposed : {false, true}) {
    std::vector<uint16_t> tile(32 * 8);
    for (size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<uint16_t>(i * 7 + 3);
    Device device;
    const uint16_t* from = device.Buffer(tile);
    uint32_t* to = device.Buffer(std::vector<uint32_t>(32 * 4));
    const std::string text = std::string(kFillShared) + "  ldmatrix.sync.aligned.m8n8.x4" +
                             (transposed ? ".trans" : "") +
                             ".shared.b16 {%r10, %r11, %r12, %r13}, [%r2];\n  add.u64 %x2, %rd1, %x0;\n"
                             "  st.global.v4.b32 [%x2], {%r10, %r11, %r12, %r13};\n";
    const RunResult run = device.Run(KernelText(text, 2), {from, to});
    ASSERT_EQ(run.parse_error, "");
    ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
    EXPECT_EQ(run.counters.BankConflicts(), 0u);
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        for (int h = 0; h < 2; ++h) {
          const int row = transposed ? lane % 4 * 2 + h : lane / 4, col = transposed ? lane / 4 : lane % 4 * 2 + h;
          EXPECT_EQ(to[lane * 4 + m] >> (16 * h) & 0xffff, tile[(m * 8 + row) * 8 + col]);
        }
      }
    }
  }
}

TEST(MatrixLoadTest, StmatrixIsTheInverseOfLdmatrix) {
  for (const std::string modifier : {"", ".trans"}) {
    std::vector<uint16_t> tile(32 * 8);
    for (size_t i = 0; i < tile.size(); ++i) tile[i] = static_cast<uint16_t>(i * 11 + 5);
    Device device;
    const uint16_t* from = device.Buffer(tile);
    uint16_t* to = device.Buffer(std::vector<uint16_t>(32 * 8));
    const std::string text = std::string(kFillShared) +
                             "  .shared .align 16 .b8 other[512];\n  mov.u32 %r20, other;\n  add.u32 %r20, %r20, %r0;\n"
                             "  ldmatrix.sync.aligned.m8n8.x4" +
                             modifier +
                             ".shared.b16 {%r10, %r11, %r12, %r13}, [%r2];\n"
                             "  stmatrix.sync.aligned.m8n8.x4" +
                             modifier +
                             ".shared.b16 [%r20], {%r10, %r11, %r12, %r13};\n"
                             "  bar.warp.sync -1;\n  ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r20];\n"
                             "  add.u64 %x2, %rd1, %x0;\n  st.global.v4.b32 [%x2], {%r10, %r11, %r12, %r13};\n";
    const RunResult run = device.Run(KernelText(text, 2), {from, to});
    ASSERT_EQ(run.parse_error, "");
    ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
    EXPECT_EQ(std::vector<uint16_t>(to, to + 256), tile);
  }
}

TEST(MatrixLoadTest, RowsInTheSameBanksAreCountedAsConflicts) {
  Device device;
  uint32_t* to = device.Buffer(std::vector<uint32_t>(32));
  // 8 rows 128 bytes apart: all in the same four banks, so 8 passes instead of 1.
  const std::string text =
      "  .shared .align 16 .b8 tile[4096];\n  mov.u32 %r1, tile;\n  shl.b32 %r0, %t, 7;\n  add.u32 %r2, %r1, %r0;\n"
      "  mov.b32 %r4, 0;\n  st.shared.v4.b32 [%r2], {%r4, %r4, %r4, %r4};\n  bar.warp.sync -1;\n"
      "  ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r10}, [%r2];\n  add.u64 %rd0, %rd0, %o4;\n  st.global.b32 [%rd0], "
      "%r10;\n";
  const RunResult run = device.Run(KernelText(text, 1), {to});
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  // The store: four quarter warps whose 8 lanes all meet in the same four banks. The load: one matrix.
  EXPECT_EQ(run.counters.shared_ideal_passes, 4u + 1u);
  EXPECT_EQ(run.counters.shared_passes, 4u * 8u + 8u);
}

}  // namespace
}  // namespace tessera::vgpu
