// Fundamental types of PTX operands.
#pragma once

#include <string_view>

namespace tessera::vgpu {

enum class Type {
  kNone,
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kF16x2,
  kBF16,
  kBF16x2,
  kTF32,
  kF32,
  kF64,
  kE4M3x2,
  kE5M2x2,
};

Type ParseType(std::string_view name);  // "f32"; kNone when it is no type
int Bits(Type type);                    // of a value; 1 for predicates
bool IsSigned(Type type);               // kS8 to kS64
bool IsFloat(Type type);

}  // namespace tessera::vgpu
