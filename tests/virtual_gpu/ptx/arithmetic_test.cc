// Each instruction against its definition in the PTX ISA, computed here in another way.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {
namespace {

// A fresh seed from the case's name, so that every case sees other values and sees them again next time.
std::mt19937_64 Generator(const std::string& name) {
  std::seed_seq seed(name.begin(), name.end());
  return std::mt19937_64(seed);
}

uint64_t Masked(uint64_t value, int bits) {
  return bits == 64 ? value : value & ((uint64_t{1} << bits) - 1);
}
int64_t Signed(uint64_t value, int bits) {
  return static_cast<int64_t>(value << (64 - bits)) >> (64 - bits);
}

struct IntegerCase {
  std::string text;  // with %result, %a, %b, %c
  int source_bits, result_bits;
  std::function<uint64_t(uint64_t, uint64_t, uint64_t)> expected;
};

std::vector<uint64_t> InterestingIntegers(std::mt19937_64& random) {
  std::vector<uint64_t> values = {0,  1,  ~uint64_t{0}, 0x7fffffff, 0x80000000, 0x8000000000000000, 0x7fffffffffffffff,
                                  31, 32, 33,           0x7fff,     0x8000};
  while (values.size() < 32) values.push_back(random() >> (random() % 64));
  std::shuffle(values.begin(), values.end(), random);
  return values;
}

class IntegerTest : public testing::TestWithParam<IntegerCase> {};

TEST_P(IntegerTest, MatchesItsDefinition) {
  const IntegerCase& test = GetParam();
  auto random = Generator(test.text);
  for (int round = 0; round < 4; ++round) {
    const Lanes in = {InterestingIntegers(random), InterestingIntegers(random), InterestingIntegers(random)};
    std::string error;
    const auto out = Evaluate(test.text, in, test.source_bits, test.result_bits, &error);
    ASSERT_EQ(out.size(), 32u) << error;
    for (int l = 0; l < 32; ++l) {
      const int s = test.source_bits;
      const uint64_t expected = test.expected(Masked(in.a[l], s), Masked(in.b[l], s), Masked(in.c[l], s));
      EXPECT_EQ(Masked(out[l], test.result_bits), Masked(expected, test.result_bits))
          << test.text << " of " << in.a[l] << ", " << in.b[l] << ", " << in.c[l];
    }
  }
}

using U = uint64_t;
const IntegerCase kIntegers[] = {
    {"add.s32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a + b; }},
    {"add.u64 %result, %a, %b;", 64, 64, [](U a, U b, U) { return a + b; }},
    {"add.u16 %result, %a, %b;", 16, 16, [](U a, U b, U) { return a + b; }},
    {"sub.s32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a - b; }},
    {"add.sat.s32 %result, %a, %b;", 32, 32,
     [](U a, U b, U) {
       return static_cast<U>(std::clamp<int64_t>(Signed(a, 32) + Signed(b, 32), INT32_MIN, INT32_MAX));
     }},
    {"mul.lo.s32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a * b; }},
    {"mul.hi.u32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a * b >> 32; }},
    {"mul.hi.s32 %result, %a, %b;", 32, 32,
     [](U a, U b, U) { return static_cast<U>(Signed(a, 32) * Signed(b, 32) >> 32); }},
    {"mul.hi.u64 %result, %a, %b;", 64, 64,
     [](U a, U b, U) { return static_cast<U>(static_cast<unsigned __int128>(a) * b >> 64); }},
    {"mul.hi.s64 %result, %a, %b;", 64, 64,
     [](U a, U b, U) {
       return static_cast<U>(static_cast<__int128>(static_cast<int64_t>(a)) * static_cast<int64_t>(b) >> 64);
     }},
    {"mul.wide.s32 %result, %a, %b;", 32, 64,
     [](U a, U b, U) { return static_cast<U>(Signed(a, 32) * Signed(b, 32)); }},
    {"mul.wide.u32 %result, %a, %b;", 32, 64, [](U a, U b, U) { return a * b; }},
    {"mul.wide.u16 %result, %a, %b;", 16, 32, [](U a, U b, U) { return a * b; }},
    {"mad.lo.s32 %result, %a, %b, %c;", 32, 32, [](U a, U b, U c) { return a * b + c; }},
    {"mad.wide.u32 %result, %a, %b, 77;", 32, 64, [](U a, U b, U) { return a * b + 77; }},
    {"div.s32 %result, %a, %b;", 32, 32,
     [](U a, U b, U) { return b == 0 ? ~U{0} : static_cast<U>(Signed(a, 32) / Signed(b, 32)); }},
    {"rem.u32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return b == 0 ? a : a % b; }},
    {"min.s32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return Signed(a, 32) < Signed(b, 32) ? a : b; }},
    {"max.u32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return std::max(a, b); }},
    {"min.s64 %result, %a, %b;", 64, 64, [](U a, U b, U) { return Signed(a, 64) < Signed(b, 64) ? a : b; }},
    {"max.s16 %result, %a, %b;", 16, 16, [](U a, U b, U) { return Signed(a, 16) > Signed(b, 16) ? a : b; }},
    {"neg.s32 %result, %a;", 32, 32, [](U a, U, U) { return -a; }},
    {"abs.s32 %result, %a;", 32, 32, [](U a, U, U) { return Signed(a, 32) < 0 ? -a : a; }},
    {"and.b32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a & b; }},
    {"or.b64 %result, %a, %b;", 64, 64, [](U a, U b, U) { return a | b; }},
    {"xor.b32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return a ^ b; }},
    {"not.b32 %result, %a;", 32, 32, [](U a, U, U) { return ~a; }},
    {"shl.b32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return b > 31 ? 0 : a << b; }},
    {"shr.u32 %result, %a, %b;", 32, 32, [](U a, U b, U) { return b > 31 ? 0 : a >> b; }},
    {"shr.s32 %result, %a, %b;", 32, 32,
     [](U a, U b, U) { return static_cast<U>(Signed(a, 32) >> (b > 31 ? 31 : b)); }},
    {"{ .reg .b32 %n; cvt.u32.u64 %n, %b; shl.b64 %result, %a, %n; }", 64, 64,
     [](U a, U b, U) { return (b & 0xffffffff) > 63 ? 0 : a << (b & 63); }},
    {"{ .reg .b32 %n; cvt.u32.u64 %n, %b; shr.s64 %result, %a, %n; }", 64, 64,
     [](U a, U b, U) { return static_cast<U>(Signed(a, 64) >> ((b & 0xffffffff) > 63 ? 63 : b & 63)); }},
    {"shf.l.wrap.b32 %result, %a, %b, %c;", 32, 32,
     [](U a, U b, U c) { return static_cast<U>((static_cast<unsigned __int128>(b << 32 | a) << (c & 31)) >> 32); }},
    {"shf.r.clamp.b32 %result, %a, %b, %c;", 32, 32, [](U a, U b, U c) { return (b << 32 | a) >> std::min<U>(c, 32); }},
    {"popc.b32 %result, %a;", 32, 32,
     [](U a, U, U) {
       U n = 0;
       for (; a != 0; a &= a - 1) ++n;
       return n;
     }},
    {"clz.b32 %result, %a;", 32, 32,
     [](U a, U, U) {
       U n = 0;
       while (n < 32 && (a >> (31 - n) & 1) == 0) ++n;
       return n;
     }},
    {"brev.b32 %result, %a;", 32, 32,
     [](U a, U, U) {
       U r = 0;
       for (int i = 0; i < 32; ++i) r |= (a >> i & 1) << (31 - i);
       return r;
     }},
    {"bfind.u32 %result, %a;", 32, 32,
     [](U a, U, U) {
       U r = 0xffffffff;
       for (U i = 0; i < 32; ++i)
         if (a >> i & 1) r = i;
       return r;
     }},
    {"bfind.s32 %result, %a;", 32, 32,
     [](U a, U, U) {
       U r = 0xffffffff;
       if (a >> 31 & 1) a = ~a & 0xffffffff;
       for (U i = 0; i < 32; ++i)
         if (a >> i & 1) r = i;
       return r;
     }},
    // The ISA's pseudo code, bit by bit.
    {"bfe.u32 %result, %a, %b, %c;", 32, 32,
     [](U a, U b, U c) {
       const U pos = b & 0xff, len = c & 0xff;
       U d = 0;
       for (U i = 0; i < 32; ++i)
         if (i < len && pos + i <= 31) d |= (a >> (pos + i) & 1) << i;
       return d;
     }},
    {"bfe.s32 %result, %a, %b, %c;", 32, 32,
     [](U a, U b, U c) {
       const U pos = b & 0xff, len = c & 0xff, msb = 31;
       const U sbit = len == 0 ? 0 : a >> std::min(pos + len - 1, msb) & 1;
       U d = 0;
       for (U i = 0; i <= msb; ++i) d |= (i < len && pos + i <= msb ? a >> (pos + i) & 1 : sbit) << i;
       return d;
     }},
    {"bfi.b32 %result, %a, %b, %c, 7;", 32, 32,
     [](U a, U b, U c) {
       const U pos = c & 0xff, len = 7;
       for (U i = 0; i < len && pos + i <= 31; ++i) b = (b & ~(U{1} << (pos + i))) | (a >> i & 1) << (pos + i);
       return b;
     }},
    {"lop3.b32 %result, %a, %b, %c, 0x1b;", 32, 32,
     [](U a, U b, U c) {
       U d = 0;
       for (int i = 0; i < 32; ++i) d |= (U{0x1b} >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
       return d;
     }},
    {"prmt.b32 %result, %a, %b, %c;", 32, 32,
     [](U a, U b, U c) {
       const U both = b << 32 | a;
       U d = 0;
       for (int i = 0; i < 4; ++i) {
         const U sel = c >> (4 * i) & 15;
         U byte = both >> (8 * (sel & 7)) & 0xff;
         if (sel & 8) byte = byte & 0x80 ? 0xff : 0;
         d |= byte << (8 * i);
       }
       return d;
     }},
    {"{ .reg .pred %q; setp.lt.s32 %q, %a, %b; selp.b32 %result, %a, %c, %q; }", 32, 32,
     [](U a, U b, U c) { return Signed(a, 32) < Signed(b, 32) ? a : c; }},
    {"{ .reg .pred %q, %s; setp.hi.u32 %s, %b, %c; setp.ne.and.u32 %q, %a, %b, !%s; selp.b32 %result, 1, 0, %q; }", 32,
     32, [](U a, U b, U c) { return static_cast<U>(a != b && !(b > c)); }},
    {"{ .reg .pred %q, %s; setp.ge.u32 %q|%s, %a, %b; selp.b32 %result, 1, 0, %s; }", 32, 32,
     [](U a, U b, U) { return static_cast<U>(a < b); }},
    {"set.gt.u32.s32 %result, %a, %b;", 32, 32,
     [](U a, U b, U) { return Signed(a, 32) > Signed(b, 32) ? 0xffffffffu : 0u; }},
    {"slct.b32.s32 %result, %a, %b, %c;", 32, 32, [](U a, U b, U c) { return Signed(c, 32) >= 0 ? a : b; }},
    {"sad.u32 %result, %a, %b, %c;", 32, 32, [](U a, U b, U c) { return c + (a > b ? a - b : b - a); }},
    {"mov.b32 %result, %a;", 32, 32, [](U a, U, U) { return a; }},
    {"mov.b64 %result, {%a, %b};", 32, 64, [](U a, U b, U) { return b << 32 | a; }},
    {"{ .reg .b32 %u, %v; mov.b64 {%u, %v}, %a; mov.b64 %result, {%v, %u}; }", 64, 64,
     [](U a, U, U) { return a << 32 | a >> 32; }},
    {"{ .reg .b16 %u, %v; mov.b32 {%u, %v}, %a; mov.b32 %result, {%v, %u}; }", 32, 32,
     [](U a, U, U) { return (a << 16 | a >> 16) & 0xffffffff; }},
    {"cvt.s64.s32 %result, %a;", 32, 64, [](U a, U, U) { return static_cast<U>(Signed(a, 32)); }},
    {"cvt.u64.u32 %result, %a;", 32, 64, [](U a, U, U) { return a; }},
    {"cvt.u32.u64 %result, %a;", 64, 32, [](U a, U, U) { return a; }},
    {"cvt.s32.s8 %result, %a;", 32, 32, [](U a, U, U) { return static_cast<U>(Signed(a & 0xff, 8)); }},
    {"cvt.u32.u16 %result, %a;", 16, 32, [](U a, U, U) { return a; }},
    {"cvt.s32.s16 %result, %a;", 16, 32, [](U a, U, U) { return static_cast<U>(Signed(a, 16)); }},
    {"cvt.u16.u32 %result, %a;", 32, 16, [](U a, U, U) { return a; }},
    {"cvt.sat.u8.s32 %result, %a;", 32, 32,
     [](U a, U, U) { return static_cast<U>(std::clamp<int64_t>(Signed(a, 32), 0, 255)); }},
};

INSTANTIATE_TEST_SUITE_P(All, IntegerTest, testing::ValuesIn(kIntegers));

}  // namespace
}  // namespace tessera::vgpu
