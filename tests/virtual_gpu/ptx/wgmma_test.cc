// wgmma.mma_async: every swizzle mode, both directions of both operands, A from shared memory and from registers.
// Shared memory is laid out here by the canonical layouts of the PTX ISA, as shapes and strides:
//   K-major   none ((8,m),(8,2)):((8,SBO),(1,LBO))      swizzled by W chunks ((8,m),(8,2)):((8W,SBO),(1,8))
//   MN-major  none ((8,1,m),(8,k)):((1,8,SBO),(8,LBO))  swizzled by W chunks ((8,W,m),(8,k)):((1,8,LBO),(8W,SBO))
// in elements of 16 bits, followed by Swizzle<log2 W, 4, 3> of the byte address.
#include <gtest/gtest.h>

#include <random>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kBase = 1024;  // where the window begins
constexpr int kM = 64, kK = 16;

struct Mode {
  const char* name;
  int width;            // chunks of an atom's row
  uint64_t descriptor;  // bits 62 and 63
};
constexpr Mode kModes[] = {{"None", 1, 0}, {"Swizzle32", 2, 3}, {"Swizzle64", 4, 2}, {"Swizzle128", 8, 1}};

struct WgmmaCase {
  Mode mode;
  int n;
  bool a_registers, a_transposed, b_transposed, bf16, half_accumulator, negate_a;
};

void PrintTo(const WgmmaCase& c, std::ostream* out) {
  *out << c.mode.name << " n" << c.n << (c.a_registers ? " registers" : "") << (c.a_transposed ? " ta" : "")
       << (c.b_transposed ? " tb" : "");
}

uint16_t Half(float value, bool bf16) {  // of small integers
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (bf16) return static_cast<uint16_t>(bits >> 16);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 0x3ff));
}

// One operand: where it starts, its strides, and its address of every element.
struct Layout {
  uint32_t start, leading, stride;
  Mode mode;
  bool transposed;
  int extent;  // m or n

  uint32_t Address(int mn, int k) const {
    const int w = mode.width;
    uint32_t bytes;
    if (!transposed) {
      bytes = mn % 8 * (8 * w) * 2 + mn / 8 * stride + k % 8 * 2 + (w == 1 ? k / 8 * leading : k / 8 * 16);
    } else if (w == 1) {
      bytes = mn % 8 * 2 + mn / 8 * stride + k % 8 * 16 + k / 8 * leading;
    } else {
      bytes = mn % 8 * 2 + mn / 8 % w * 16 + mn / (8 * w) * leading + k % 8 * (16 * w) + k / 8 * stride;
    }
    const uint32_t address = start + bytes;
    const uint32_t mask = static_cast<uint32_t>(w - 1) << 7;
    return address ^ (address & mask) >> 3;
  }
  uint64_t Descriptor() const {
    const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3fff); };
    return field(start) | field(leading) << 16 | field(stride) << 32 | mode.descriptor << 62;
  }
};

// Strides chosen larger than needed, so that a mistaken use of one for the other shows.
Layout MakeLayout(uint32_t start, Mode mode, bool transposed, int extent) {
  const uint32_t atom = 8 * 16 * mode.width;
  Layout layout{start, 0, 0, mode, transposed, extent};
  if (!transposed) {
    layout.stride = mode.width == 1 ? 2 * atom : atom;
    layout.leading = mode.width == 1 ? 128 : 16;  // swizzled: not used
    if (mode.width == 1) layout.stride = 256;
  } else if (mode.width == 1) {
    layout.stride = 256;
    layout.leading = 128;
  } else {
    layout.stride = atom;
    layout.leading = 2 * atom;
  }
  return layout;
}

class WgmmaTest : public testing::TestWithParam<WgmmaCase> {};

TEST_P(WgmmaTest, MatchesTheProductOfItsMatrices) {
  const WgmmaCase& test = GetParam();
  std::mt19937 random(static_cast<unsigned>(test.n * 64 + test.mode.width * 8 + test.a_transposed * 4 +
                                            test.b_transposed * 2 + test.bf16));
  std::uniform_int_distribution<int> small(-3, 3);
  std::vector<float> A(kM * kK), B(kK * test.n), C(kM * test.n);
  for (auto* matrix : {&A, &B, &C}) {
    for (float& v : *matrix) v = static_cast<float>(small(random));
  }
  constexpr uint32_t kBytes = 49152, kBOffset = 16384;
  std::vector<uint8_t> image(kBytes);
  const Layout a = MakeLayout(kBase, test.mode, test.a_transposed, kM);
  const Layout b = MakeLayout(kBase + kBOffset, test.mode, test.b_transposed, test.n);
  const auto put = [&](uint32_t address, float value) {
    const uint16_t bits = Half(value, test.bf16);
    ASSERT_LT(address - kBase, kBytes);
    std::memcpy(&image[address - kBase], &bits, 2);
  };
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) put(a.Address(m, k), A[m * kK + k]);
  }
  for (int n = 0; n < test.n; ++n) {
    for (int k = 0; k < kK; ++k) put(b.Address(n, k), B[k * test.n + n]);
  }
  // Accumulators: d[j] of thread t is row 16 warp + lane / 4 + 8 (j / 2 % 2), column 8 (j / 4) + 2 (lane % 4) + j % 2.
  const auto row = [](int t, int j) { return t / 32 * 16 + t % 32 / 4 + 8 * (j / 2 % 2); };
  const auto column = [](int t, int j) { return 8 * (j / 4) + 2 * (t % 4) + j % 2; };
  const int values = test.n / 2, registers = test.half_accumulator ? values / 2 : values;
  std::vector<uint32_t> c(128 * registers), fragments(128 * 4);
  for (int t = 0; t < 128; ++t) {
    for (int j = 0; j < values; ++j) {
      const float v = C[row(t, j) * test.n + column(t, j)];
      if (test.half_accumulator) {
        c[t * registers + j / 2] |= uint32_t{Half(v, false)} << (16 * (j % 2));
      } else {
        c[t * registers + j] = std::bit_cast<uint32_t>(v);
      }
    }
    for (int i = 0; i < 8; ++i) {
      const int m = t / 32 * 16 + t % 32 / 4 + (i % 4 < 2 ? 0 : 8), k = 2 * (t % 4) + i % 2 + (i < 4 ? 0 : 8);
      fragments[t * 4 + i / 2] |= uint32_t{Half(A[m * kK + k], test.bf16)} << (16 * (i % 2));
    }
  }
  Device device;
  const uint8_t* from = device.Buffer(image);
  uint32_t* accumulators = device.Buffer(c);
  const uint32_t* a_fragments = device.Buffer(fragments);
  std::string text = "  .reg .b32 %acc<" + std::to_string(registers) +
                     ">;\n  .reg .b32 %a<4>;\n"
                     "  mul.wide.u32 %x0, %t, 16;\n  add.u64 %rd0, %rd0, %x0;\n  mul.wide.u32 %x1, %t, " +
                     std::to_string(4 * registers) +
                     ";\n  add.u64 %rd1, %rd1, %x1;\n  add.u64 %rd2, %rd2, %x0;\n"
                     "  mov.u32 %r0, smem;\n  shl.b32 %r1, %t, 4;\n  add.u32 %r0, %r0, %r1;\n";
  for (uint32_t at = 0; at < kBytes; at += 2048) {
    const std::string offset = std::to_string(at);
    text += "  ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd0+" + offset + "];\n  st.shared.v4.b32 [%r0+" + offset +
            "], {%r2, %r3, %r4, %r5};\n";
  }
  text += "  ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd2];\n";
  std::string list = "{";
  for (int j = 0; j < registers; ++j) {
    text += "  ld.global.b32 %acc" + std::to_string(j) + ", [%rd1+" + std::to_string(4 * j) + "];\n";
    list += (j > 0 ? ", %acc" : "%acc") + std::to_string(j);
  }
  list += "}";
  const std::string type = test.bf16 ? "bf16" : "f16";
  text += "  fence.proxy.async;\n  bar.sync 0;\n  mov.b64 %x2, " + std::to_string(a.Descriptor()) +
          ";\n  mov.b64 %x3, " + std::to_string(b.Descriptor()) +
          ";\n  mov.b32 %r9, 1;\n  setp.ne.b32 %p0, %r9, 0;\n  wgmma.fence.sync.aligned;\n  "
          "wgmma.mma_async.sync.aligned.m64n" +
          std::to_string(test.n) + "k16." + (test.half_accumulator ? "f16" : "f32") + "." + type + "." + type + " " +
          list + ", " + (test.a_registers ? "{%a0, %a1, %a2, %a3}" : "%x2") + ", %x3, %p0, " +
          (test.negate_a ? "-1" : "1") + ", 1" +
          (test.a_registers    ? ""
           : test.a_transposed ? ", 1"
                               : ", 0") +
          (test.b_transposed ? ", 1" : ", 0") +
          ";\n  wgmma.commit_group.sync.aligned;\n  wgmma.wait_group.sync.aligned 0;\n";
  for (int j = 0; j < registers; ++j)
    text += "  st.global.b32 [%rd1+" + std::to_string(4 * j) + "], %acc" + std::to_string(j) + ";\n";
  const RunResult run = device.Run(KernelText(text, 3, ".extern .shared .align 1024 .b8 smem[];"),
                                   {from, accumulators, a_fragments}, {}, {128, 1, 1}, kBytes);
  ASSERT_EQ(run.parse_error, "");
  ASSERT_FALSE(run.fault.has_value()) << run.fault->message;
  EXPECT_EQ(run.counters.tensor_flops, 2u * kM * test.n * kK);
  int wrong = 0;
  for (int t = 0; t < 128; ++t) {
    for (int j = 0; j < values; ++j) {
      const int m = row(t, j), n = column(t, j);
      double expected = C[m * test.n + n];
      for (int k = 0; k < kK; ++k) expected += (test.negate_a ? -1.0 : 1.0) * A[m * kK + k] * B[k * test.n + n];
      if (test.half_accumulator) {
        const uint32_t got = accumulators[t * registers + j / 2] >> (16 * (j % 2)) & 0xffff;
        wrong += got != Half(static_cast<float>(expected), false) && !(expected == 0 && got == 0x8000);
      } else {
        wrong += std::bit_cast<float>(accumulators[t * registers + j]) != expected;
      }
    }
  }
  EXPECT_EQ(wrong, 0);
}

std::vector<WgmmaCase> Cases() {
  std::vector<WgmmaCase> cases;
  for (const Mode& mode : kModes) {
    for (const bool ta : {false, true}) {
      for (const bool tb : {false, true}) cases.push_back({mode, 64, false, ta, tb, true, false, false});
    }
    cases.push_back({mode, 128, true, false, mode.width == 8, true, false, false});
  }
  cases.push_back({kModes[3], 8, false, false, false, false, false, false});
  cases.push_back({kModes[3], 256, true, false, false, false, false, false});
  cases.push_back({kModes[3], 32, false, false, true, false, true, false});
  cases.push_back({kModes[0], 16, false, false, false, true, false, true});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, WgmmaTest, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace tessera::vgpu
