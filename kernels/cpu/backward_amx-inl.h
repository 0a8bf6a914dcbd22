// The backward pass on a tile unit, with P and dS computed in AVX-512 beside it.
//
// A unit of work is 32 query rows against the 64 keys of a packed block. Scores are kept transposed, keys along the
// rows of a tile: P and dS then are left operands of the products with output gradients and queries (dV, dK), and dS
// the right operand of the product with keys (dQ, transposed too), without a transposition of anything computed; LSE
// and delta are vectors.
//
// Three units are in flight, each a stage behind the other: while the tile unit takes S and dP of one and dQ of
// another, the vector unit turns S and dP of a third into P and dS, a few keys after each product. dV and dK sum over
// rows, so they are taken for the units of a pass together, and a quarter of those products at a time beside the units
// of the pass after. The line does not stop between key blocks.
//
// Floor, in cycles per unit: the tile unit takes 16 for each of (3 D + 2 Dv) / 4 products of operands in the
// first-level cache, 1280 at widths of 64 and 2560 at 128. The vector unit has 128 vectors of scores, about ten
// operations each that start once a cycle beside a busy tile unit: 1300. So they weigh the same at 64, which is why
// every product has its share of keys beside it, and at 128 the tile unit binds. P and dS of a pass (32 KiB, twice) and
// the operands live in the second-level cache. This file has been run on a tile unit in software only; nothing here is
// a measurement of it.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BACKWARD_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>

#include "kernels/cpu/backward_operands_amx-inl.h"
#include "kernels/cpu/backward_stage_amx-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

template <class Tiles>
class TileBackward {
 public:
  TileBackward(const AttendBackwardArgs& args, const BackwardRows& rows, const TileOperands& operands)
      : args_(args), rows_(rows), operands_(operands), layout_(operands.layout()) {
    tiles_.Begin();
  }
  ~TileBackward() { tiles_.End(); }
  TileBackward(const TileBackward&) = delete;
  TileBackward& operator=(const TileBackward&) = delete;

  // Keys [first_key, first_key + count) of the task, which lie at `row` of the tensors.
  void LoadBlock(int64_t first_key, int64_t row, int count, int kv_head) {
    block_ ^= 1;
    FinishBlock(block_);
    // Units in flight still read the columns of the block before the last one.
    for (const UnitStage* stage : {&scored_, &weighed_}) {
      if (stage->active() && stage->block == block_) Drain();
    }
    Block& block = blocks_[block_];
    block = {first_key, row, count, kv_head, operands_.LoadBlock(block_, row, count, kv_head)};
  }

  void Fold(const UnitBlock& met) {
    UnitStage stage;
    static_cast<UnitBlock&>(stage) = met;
    stage.block = block_;
    stage.parity = parity_;
    parity_ ^= 1;
    Enter(&stage);
    Advance(stage);
    if (rows_.modified()) Differentiate(operands_, rows_, blocks_[block_].first_key, &scored_);
  }

  // Everything folded has been added up when this returns.
  void Finish() {
    FinishBlock(block_ ^ 1);
    FinishBlock(block_);
    Drain();
  }

 private:
  static constexpr int kPassUnits = TileBackwardLayout::kPassUnits;

  // Units of one key block whose P and dS await their products with the rows.
  struct Pass {
    int block = 0;
    bool first = false;  // of its block
    int count = 0;
    int weighed = 0;  // units that have P and dS
    int done = 0;     // sums of ProductsOf
    int unit[kPassUnits];
    uint64_t bits[kPassUnits][kUnitRows];
  };
  struct Block {
    int64_t first_key = 0, row = 0;
    int count = 0, kv_head = 0;
    uint64_t poison = 0;
    int last_pass = -1;  // none
  };

  Pass& PassOf(int number) { return passes_[number % 3]; }

  // Gives the unit its place in a pass. Passes are numbered in order; P and dS of n + 2 lie where those of n lay.
  void Enter(UnitStage* stage) {
    Block& block = blocks_[stage->block];
    const bool first = block.last_pass < 0;
    if (first || PassOf(newest_).count == kPassUnits) {
      ++newest_;
      while (next_ + 3 <= newest_) FinishPass();
      Pass& pass = PassOf(newest_);
      pass.block = stage->block;
      pass.first = first;
      pass.count = pass.weighed = pass.done = 0;
      block.last_pass = newest_;
    }
    Pass& pass = PassOf(newest_);
    stage->pass = newest_;
    stage->slot = pass.count++;
    pass.unit[stage->slot] = stage->unit;
    std::copy(stage->bits, stage->bits + kUnitRows, pass.bits[stage->slot]);
  }

  void Drain() {
    while (scored_.active() || weighed_.active()) Advance(UnitStage());
  }

  // One step of the line: S and dP of `next`, P and dS of the unit before, dQ of the one before that, and a share of dV
  // and dK of the last whole pass.
  void Advance(const UnitStage& next) {
    if (scored_.active()) {
      while (next_ + 2 <= scored_.pass) FinishPass();
    }
    const int sums = PassIsWhole() ? std::min(ShareOfPass(), SumsOfPass() - PassOf(next_).done) : 0;
    const int depth = (layout_.qk_depth + layout_.v_depth) / kTileRows, columns = layout_.qk_stride / kTileRows;
    products_ = std::max(1, (next.active() ? 4 * next.groups * depth : 0) +
                                (weighed_.active() ? 2 * weighed_.groups * columns : 0) +
                                (sums > 0 ? 4 * sums * PassOf(next_).count : 0));
    keys_ = keys_left_ = scored_.active() ? scored_.groups * kTileRows : 0;
    credit_ = 0;
    if (next.active()) MultiplyScores(next);
    if (weighed_.active()) AddToQueries(weighed_);
    if (sums > 0) AddToKeys(sums);
    while (keys_left_ > 0) WeighKeys(operands_, args_.score.scale, scored_, keys_ - keys_left_--);
    if (scored_.active()) {
      for (int g = scored_.groups; g < 2; ++g) HideGroup(operands_, scored_, g);
      ++PassOf(scored_.pass).weighed;
    }
    weighed_ = scored_;
    scored_ = next;
  }

  // Called after each tile product: as many keys as keep step with the products.
  HWY_INLINE void Beside() {
    for (credit_ += keys_; credit_ >= products_ && keys_left_ > 0; credit_ -= products_) {
      WeighKeys(operands_, args_.score.scale, scored_, keys_ - keys_left_--);
    }
  }

  // S^T = K Q^T and dP^T = V dO^T.
  void MultiplyScores(const UnitStage& stage) {
    const auto multiply = [this](const uint32_t* left, const uint32_t* right, int depth, float* sums) HWY_ATTR {
      MultiplyTiles<2, 2, false>(
          tiles_, [=](int i) HWY_ATTR { return left + i * kTileRows; }, depth,
          [=](int i) HWY_ATTR { return right + i * kTileRows * kUnitRows; }, kUnitRows, depth / kTileRows, sums,
          kUnitRows, [this]() HWY_ATTR { Beside(); });
    };
    for (int g = 0; g < stage.groups; ++g) {
      const int first = g * kGroup;
      multiply(operands_.Key() + first * layout_.qk_depth, operands_.QueryColumns(stage.unit), layout_.qk_depth,
               operands_.Scores(stage.parity) + first * kUnitRows);
      multiply(operands_.Value() + first * layout_.v_depth, operands_.OutputGradientColumns(stage.unit),
               layout_.v_depth, operands_.Gradients(stage.parity) + first * kUnitRows);
    }
  }

  // dQ^T += K^T dS^T.
  void AddToQueries(const UnitStage& stage) {
    const uint32_t* const pairs = operands_.GradientPairs(stage.parity);
    float* const sums = operands_.QueryGradient(stage.unit);
    int row = 0;
    const auto multiply = [&]<int kM>() HWY_ATTR {
      const uint32_t* const columns = operands_.KeyColumns(stage.block) + row * kGroup;
      MultiplyTiles<kM, 2, true>(
          tiles_, [=](int g) HWY_ATTR { return columns + g * kTileRows; }, kGroup,
          [=](int g) HWY_ATTR { return pairs + g * kTileRows * kUnitRows; }, kUnitRows, stage.groups,
          sums + row * kUnitRows, kUnitRows, [this]() HWY_ATTR { Beside(); });
    };
    for (; row + 2 * kTileRows <= layout_.qk_stride; row += 2 * kTileRows) multiply.template operator()<2>();
    if (row < layout_.qk_stride) multiply.template operator()<1>();
    AddPoisonedKeys(stage);
  }

  // Keys that are not finite were packed as zeros; only the rows that attend them get what they give.
  void AddPoisonedKeys(const UnitStage& stage) {
    const Block& block = blocks_[stage.block];
    for (uint64_t poison = block.poison; HWY_UNLIKELY(poison != 0); poison &= poison - 1) {
      const int j = std::countr_zero(poison);
      const void* const key = args_.key.At(block.row + j, block.kv_head);
      for (int r = 0; r < kUnitRows; ++r) {
        if ((stage.bits[r] >> j & 1) == 0) continue;
        const float factor = Half(operands_.ScoreGradient(stage.pass, stage.slot), j, r);
        for (int i = 0; i < args_.key.width; ++i) {
          operands_.QueryGradient(stage.unit)[i * kUnitRows + r] += factor * LoadAsFloat(key, DType::kBFloat16, i);
        }
      }
    }
  }

  // The products of a pass: 32 keys by up to 32 columns at a time, first those of dV, then of dK.
  int ValueSums() const { return (layout_.v_stride + kGroup - 1) / kGroup * 2; }
  int SumsOfPass() const { return ValueSums() + (layout_.qk_stride + kGroup - 1) / kGroup * 2; }
  int ShareOfPass() const { return (SumsOfPass() + kPassUnits - 1) / kPassUnits; }

  // Whether all units that pass `next_` will have, have P and dS.
  bool PassIsWhole() {
    if (next_ > newest_) return false;
    const Pass& pass = PassOf(next_);
    return pass.weighed == pass.count && (next_ < newest_ || pass.count == kPassUnits);
  }

  // The next `count` sums of pass `next_`, dV = P^T dO and dK = dS^T Q.
  void AddToKeys(int count) {
    Pass& pass = PassOf(next_);
    for (; count > 0; --count, ++pass.done) {
      const bool value = pass.done < ValueSums();
      const int i = value ? pass.done : pass.done - ValueSums();
      const int column = i / 2 * kGroup, key = i % 2 * kGroup, stride = value ? layout_.v_stride : layout_.qk_stride;
      float* const sums =
          (value ? operands_.ValueGradient(pass.block) : operands_.KeyGradient(pass.block)) + key * stride + column;
      const auto left = [&](int u) HWY_ATTR {
        return (value ? operands_.Probability(next_, u) : operands_.ScoreGradient(next_, u)) + key * kTileRows;
      };
      const auto right = [&](int u) HWY_ATTR {
        const int unit = pass.unit[u];
        return (value ? operands_.OutputGradientPairs(unit) : operands_.QueryPairs(unit)) + column;
      };
      const auto multiply = [&]<int kN, bool kAdd>() HWY_ATTR {
        MultiplyTiles<2, kN, kAdd>(tiles_, left, kTileRows, right, stride, pass.count, sums, stride,
                                   [this]() HWY_ATTR { Beside(); });
      };
      const bool whole = column + kGroup <= stride;
      if (pass.first) {
        whole ? multiply.template operator()<2, false>() : multiply.template operator()<1, false>();
      } else {
        whole ? multiply.template operator()<2, true>() : multiply.template operator()<1, true>();
      }
    }
    if (pass.done == SumsOfPass()) {
      AddPoisonedRows(pass);
      ++next_;
    }
  }

  // As AddPoisonedKeys, for rows of queries and output gradients.
  void AddPoisonedRows(const Pass& pass) {
    for (int u = 0; u < pass.count; ++u) {
      const uint32_t* const poison = operands_.Poison(pass.unit[u]);
      for (int r = 0; r < kUnitRows; ++r) {
        const int pair = pass.unit[u] * kUnitRows + r;
        const auto add = [&](const void* row, int width, const uint32_t* factors, float* sums, int stride) HWY_ATTR {
          for (int j = 0; j < kKeyBlock; ++j) {
            if ((pass.bits[u][r] >> j & 1) == 0) continue;
            const float factor = Half(factors, j, r);
            for (int i = 0; i < width; ++i) sums[j * stride + i] += factor * LoadAsFloat(row, DType::kBFloat16, i);
          }
        };
        if (HWY_UNLIKELY((poison[0] >> r & 1) != 0)) {
          add(rows_.Query(pair), args_.query.width, operands_.ScoreGradient(next_, u),
              operands_.KeyGradient(pass.block), layout_.qk_stride);
        }
        if (HWY_UNLIKELY((poison[1] >> r & 1) != 0)) {
          add(rows_.OutputGradient(pair), args_.value.width, operands_.Probability(next_, u),
              operands_.ValueGradient(pass.block), layout_.v_stride);
        }
      }
    }
  }

  // What is left of pass `next_`, with nothing beside.
  void FinishPass() {
    Pass& pass = PassOf(next_);
    while (pass.weighed < pass.count) Advance(UnitStage());
    keys_ = keys_left_ = 0;
    AddToKeys(SumsOfPass() - pass.done);
  }

  // Hands the gradients of a block to the caller, once its passes are done.
  void FinishBlock(int parity) {
    Block& block = blocks_[parity];
    if (block.last_pass < 0) return;
    while (next_ <= block.last_pass) FinishPass();
    for (int j = 0; j < block.count; ++j) {
      rows_.AddToKey(block.first_key + j, operands_.KeyGradient(parity) + j * layout_.qk_stride,
                     operands_.ValueGradient(parity) + j * layout_.v_stride);
    }
    block.last_pass = -1;
  }

  const AttendBackwardArgs& args_;
  const BackwardRows& rows_;
  const TileOperands& operands_;
  const TileBackwardLayout& layout_;
  Tiles tiles_;
  UnitStage scored_, weighed_;
  Pass passes_[3];
  int newest_ = -1;  // pass
  int next_ = 0;     // pass whose dV and dK are not complete
  Block blocks_[2];
  int block_ = 0;
  int parity_ = 0;
  // Of the step in hand.
  int keys_ = 0, keys_left_ = 0, products_ = 1, credit_ = 0;
};

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
