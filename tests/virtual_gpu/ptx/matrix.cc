// mma.sync.
#include "tests/virtual_gpu/ptx/matrix.h"

#include "tests/virtual_gpu/ptx/binder.h"
#include "tests/virtual_gpu/ptx/half_float.h"

namespace tessera::vgpu {
namespace {

constexpr uint32_t kHalfAccumulator = 1, kBf16 = 2;

Signal WholeWarp(const Instruction& i, Warp& w, uint32_t lanes) {
  if (w.live != kAllLanes) return w.Fail(i, FaultKind::kBarrier, -1, "lanes of the warp have ended; mma needs all 32");
  return lanes == kAllLanes ? Signal::kNext : Signal::kWaitLanes;
}

// more: d, a, b, c. fp16 accumulators are two registers of pairs: summed in fp32 and rounded once.
template <int kK>
Signal Mma(const Instruction& i, Warp& w, uint32_t lanes) {
  const Signal here = WholeWarp(i, w, lanes);
  if (here != Signal::kNext) return here;
  constexpr int kA = kK / 4, kB = kK / 8;
  const bool half = (i.flags & kHalfAccumulator) != 0;
  const int accumulators = half ? 2 : 4;
  const uint32_t* a[kA];
  const uint32_t* b[kB];
  const uint32_t* c[4];
  uint32_t* d[4];
  alignas(64) uint32_t wide[4][kLanes];
  const int32_t* sources = i.more + accumulators;
  for (int r = 0; r < kA; ++r) a[r] = w.Read(*sources++);
  for (int r = 0; r < kB; ++r) b[r] = w.Read(*sources++);
  for (int r = 0; r < 4; ++r) {
    if (half) {
      const uint32_t* pairs = w.Read(sources[r >> 1]);
      for (int l = 0; l < kLanes; ++l) wide[r][l] = F32<false>::Write(FromF16(pairs[l] >> (16 * (r & 1)) & 0xffff));
      c[r] = d[r] = wide[r];
    } else {
      c[r] = w.Read(sources[r]);
      d[r] = w.Write(i.more[r]);
    }
  }
  Product(kK, (i.flags & kBf16) != 0, a, b, c, d);
  for (int r = 0; half && r < 2; ++r) {
    uint32_t* pairs = w.Write(i.more[r]);
    for (int l = 0; l < kLanes; ++l) {
      pairs[l] = ToF16(F32<false>::Read(wide[2 * r][l])) | ToF16(F32<false>::Read(wide[2 * r + 1][l])) << 16;
    }
  }
  return Signal::kNext;
}

// tf32, k = 4 or 8: a[r] rows g + 8 (r & 1), column t + 4 (r >> 1); b[r] row t + 4 r, column g.
template <int kK>
Signal Tf32(const Instruction& i, Warp& w, uint32_t lanes) {
  const Signal here = WholeWarp(i, w, lanes);
  if (here != Signal::kNext) return here;
  constexpr int kA = kK / 2, kB = kK / 4;
  const int32_t* d = i.more;
  const int32_t* a = d + 4;
  const int32_t* b = a + kA;
  const int32_t* c = b + kB;
  constexpr uint32_t kKept = 0xffffe000u;  // 10 bits of mantissa: hardware ignores the others
  float A[16][kK], B[kK][8], C[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < kA; ++r) A[g + 8 * (r & 1)][t + 4 * (r >> 1)] = F32<false>::Read(w.Read(a[r])[l] & kKept);
    for (int r = 0; r < kB; ++r) B[t + 4 * r][g] = F32<false>::Read(w.Read(b[r])[l] & kKept);
    for (int r = 0; r < 4; ++r) C[g + 8 * (r >> 1)][2 * t + (r & 1)] = F32<false>::Read(w.Read(c[r])[l]);
  }
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r) {
      const int m = g + 8 * (r >> 1), n = 2 * t + (r & 1);
      float sum = C[m][n];
      for (int k = 0; k < kK; ++k) sum = std::fma(A[m][k], B[k][n], sum);
      w.Write(d[r])[l] = F32<false>::Write(sum);
    }
  }
  return Signal::kNext;
}

bool Flatten(Binder& b, size_t operand, size_t count, bool result, int32_t*& more) {
  const Operand& list = b.At(operand);
  if (list.kind != Operand::kVector || list.parts.size() != count) return false;
  for (const Operand& part : list.parts) *more++ = result ? b.Destination(part, 32) : b.Source(part, 32);
  return true;
}

}  // namespace

Handler BindMatrix(Binder& b) {
  if (b.Part(0) != "mma" || b.Part(1) != "sync" || b.Operands() != 4 || !b.Has("row") || !b.Has("col")) return nullptr;
  const std::vector<Type> types = b.Types();  // d, a, b, c
  if (types.size() != 4 || types[0] != types[3] || types[1] != types[2]) return nullptr;
  const bool half = types[0] == Type::kF16;
  if (!half && types[0] != Type::kF32) return nullptr;
  int k = b.Has("m16n8k16") ? 16 : b.Has("m16n8k8") ? 8 : b.Has("m16n8k4") ? 4 : 0;
  const bool tf32 = types[1] == Type::kTF32;
  if (k == 0 || (tf32 && (k == 16 || half)) || (!tf32 && k == 4)) return nullptr;
  if (!tf32 && types[1] != Type::kF16 && types[1] != Type::kBF16) return nullptr;
  if (half && types[1] != Type::kF16) return nullptr;
  Instruction& out = b.out();
  out.kind = InstructionClass::kTensorCore;
  out.tensor_flops = 2u * 16 * 8 * k;
  out.flags = (half ? kHalfAccumulator : 0) | (types[1] == Type::kBF16 ? kBf16 : 0);
  const size_t accumulators = half ? 2 : 4, a = tf32 ? k / 2 : k / 4, bs = tf32 ? k / 4 : k / 8;
  int32_t* more = b.More(2 * accumulators + a + bs);
  if (!Flatten(b, 0, accumulators, true, more) || !Flatten(b, 1, a, false, more) || !Flatten(b, 2, bs, false, more) ||
      !Flatten(b, 3, accumulators, false, more)) {
    return nullptr;
  }
  if (tf32) return k == 8 ? &Tf32<8> : &Tf32<4>;
  return k == 16 ? &Mma<16> : &Mma<8>;
}

}  // namespace tessera::vgpu
