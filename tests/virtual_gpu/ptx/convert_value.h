// One conversion of one value, described: what cvt does where speed does not matter.
#pragma once

#include "tests/virtual_gpu/ptx/half_float.h"
#include "tests/virtual_gpu/ptx/types.h"

namespace tessera::vgpu {

struct Conversion {
  Type to = Type::kNone, from = Type::kNone;
  Rounding rounding = Rounding::kNearest;
  bool integral = false;  // .rni and kin: float to a float that is an integer
  bool ftz = false, sat = false, relu = false, satfinite = false;
  int to_register = 32;  // width of the result's register; integers are extended into it
  int from_register = 32;
};

// The source's bits to the result's.
uint64_t Convert(uint64_t bits, const Conversion& c);

// fp8 of either kind, to nearest even and saturating to the largest number.
uint32_t ToFp8(double value, bool e4m3, bool relu);
double FromFp8(uint32_t bits, bool e4m3);

}  // namespace tessera::vgpu
