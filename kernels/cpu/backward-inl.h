// The backward pass in fp32 arithmetic, for any dtype: blocks are converted as they are packed.
#if defined(TESSERA_KERNELS_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/backward_runner-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// See BackwardRunner.
class FloatBackward {
 public:
  FloatBackward(const AttendBackwardArgs& args, const BackwardArena& arena)
      : args_(args), arena_(arena), layout_(arena_.layout) {}

  bool LoadPair(int pair, const void* query, const void* output_gradient) {
    float* const q = arena_.At(layout_.query, pair, layout_.qk_stride);
    float* const gradient = arena_.At(layout_.output_gradient, pair, layout_.v_stride);
    if (query == nullptr) {
      std::memset(q, 0, layout_.qk_stride * sizeof(float));
      std::memset(gradient, 0, layout_.v_stride * sizeof(float));
      return true;
    }
    const FloatTag d;
    const FloatVec poison =
        hn::Add(PackRow(query, args_.query.dtype, args_.query.width, layout_.qk_stride, q),
                PackRow(output_gradient, args_.query.dtype, args_.value.width, layout_.v_stride, gradient));
    return hn::AllFalse(d, hn::IsNaN(poison));
  }

  void LoadBlock(int64_t row, int count, int kv_head) {
    float* const staging = arena_.data + layout_.staging;
    PackKeys(args_.key, row, count, kv_head, staging, arena_.data + layout_.key_transposed);
    PackKeys(args_.value, row, count, kv_head, staging, arena_.data + layout_.value_transposed);
    keys_finite_ = PackValues(args_.key, row, count, kv_head, layout_.qk_stride, arena_.data + layout_.key);
  }

  float* Scores(int tile) const { return arena_.At(layout_.probability, tile * kRowBlock, kKeyBlock); }
  float* Gradients(int tile) const { return arena_.At(layout_.score_gradient, tile * kRowBlock, kKeyBlock); }

  void Skip(int tile) {
    std::memset(Scores(tile), 0, kRowBlock * kKeyBlock * sizeof(float));
    std::memset(Gradients(tile), 0, kRowBlock * kKeyBlock * sizeof(float));
  }

  void Multiply(const BackwardTile& tile) {
    HWY_NAMESPACE::Scores(arena_.At(layout_.query, tile.first_pair, layout_.qk_stride), 1, layout_.qk_stride,
                          arena_.data + layout_.key_transposed, args_.query.width, tile.count, Scores(tile.tile));
    HWY_NAMESPACE::Scores(arena_.At(layout_.output_gradient, tile.first_pair, layout_.v_stride), 1, layout_.v_stride,
                          arena_.data + layout_.value_transposed, args_.value.width, tile.count, Gradients(tile.tile));
  }

  void Differentiate(const BackwardTile& tile) {
    for (int r = 0; r < kRowBlock; ++r) {
      const int pair = tile.first_pair + r;
      if (tile.bits[r] == 0) continue;
      GradientRow(Scores(tile.tile) + r * kKeyBlock, Gradients(tile.tile) + r * kKeyBlock, tile.count,
                  args_.score.scale, arena_.data[layout_.lse + pair], arena_.data[layout_.delta + pair]);
    }
  }

  void AddToQueries(const BackwardTile& tile) {
    const float* const gradient = Gradients(tile.tile);
    const float* const key = arena_.data + layout_.key;
    float* const query_gradient = arena_.QueryGradient(tile.first_pair);
    if (HWY_LIKELY(keys_finite_ || !tile.partial)) {
      AddValues(gradient, key, layout_.qk_stride, tile.count, query_gradient);
      return;
    }
    for (int r = 0; r < kRowBlock; ++r) {
      AddSeenValues(gradient + r * kKeyBlock, tile.bits[r], key, layout_.qk_stride, tile.count,
                    query_gradient + r * layout_.qk_stride);
    }
  }

  void AddToKeys(int first_pair, int row, int depth, const uint64_t* bits) {
    AddToKeys(arena_.At(layout_.probability, row, kKeyBlock), bits,
              arena_.At(layout_.output_gradient, first_pair, layout_.v_stride), layout_.v_stride, depth,
              arena_.ValueGradient(0));
    AddToKeys(arena_.At(layout_.score_gradient, row, kKeyBlock), bits,
              arena_.At(layout_.query, first_pair, layout_.qk_stride), layout_.qk_stride, depth, arena_.KeyGradient(0));
  }

 private:
  // output[j] += sum over `depth` pairs of left[pair][j] * right[pair], for every key j of the block.
  static void AddToKeys(const float* left, const uint64_t* bits, const float* right, int stride, int depth,
                        float* output) {
    if (HWY_UNLIKELY(bits != nullptr)) {
      for (int j = 0; j < kKeyBlock; ++j) {
        AddSeenProduct(
            left + j, kKeyBlock, [=](int i) HWY_ATTR { return (bits[i] >> j & 1) != 0; }, right, stride, depth,
            output + j * stride);
      }
      return;
    }
    constexpr int kRest = kKeyBlock % kRowBlock;
    for (int j = 0; j + kRowBlock <= kKeyBlock; j += kRowBlock) {
      AddProduct<kRowBlock>(left + j, kKeyBlock, 1, right, stride, depth, output + j * stride);
    }
    constexpr int kLast = kKeyBlock - kRest;
    AddProduct<kRest>(left + kLast, kKeyBlock, 1, right, stride, depth, output + kLast * stride);
  }

  const AttendBackwardArgs& args_;
  const BackwardArena arena_;
  const BackwardLayout& layout_;
  bool keys_finite_ = true;
};

void RunBackwardTask(const AttendBackwardArgs& args, const BackwardTask& task, RowMask& mask, float* arena) {
  BackwardRunner<FloatBackward>(args, task, mask, arena).Run();
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
