#include "tests/virtual_gpu/ptx/types.h"

#include <iterator>

namespace tessera::vgpu {
namespace {

struct Row {
  std::string_view name;
  Type type;
  int bits;
};

constexpr Row kRows[] = {
    {"pred", Type::kPred, 1},      {"b8", Type::kB8, 8},          {"b16", Type::kB16, 16},
    {"b32", Type::kB32, 32},       {"b64", Type::kB64, 64},       {"b128", Type::kB128, 128},
    {"u8", Type::kU8, 8},          {"u16", Type::kU16, 16},       {"u32", Type::kU32, 32},
    {"u64", Type::kU64, 64},       {"s8", Type::kS8, 8},          {"s16", Type::kS16, 16},
    {"s32", Type::kS32, 32},       {"s64", Type::kS64, 64},       {"f16", Type::kF16, 16},
    {"f16x2", Type::kF16x2, 32},   {"bf16", Type::kBF16, 16},     {"bf16x2", Type::kBF16x2, 32},
    {"tf32", Type::kTF32, 32},     {"f32", Type::kF32, 32},       {"f64", Type::kF64, 64},
    {"e4m3x2", Type::kE4M3x2, 16}, {"e5m2x2", Type::kE5M2x2, 16},
};

}  // namespace

Type ParseType(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.type;
  }
  return Type::kNone;
}

int Bits(Type type) {
  for (const Row& row : kRows) {
    if (row.type == type) return row.bits;
  }
  return 0;
}

bool IsSigned(Type type) {
  return type >= Type::kS8 && type <= Type::kS64;
}

bool IsFloat(Type type) {
  return type >= Type::kF16;
}

}  // namespace tessera::vgpu
