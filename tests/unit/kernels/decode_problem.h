// Random decode calls: paged caches in awkward memory whose unused rows are NaN, and every sequence as a dense problem
// for the fp64 oracle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "tests/unit/kernels/problem.h"

namespace tessera::testing {

struct DecodeShape {
  DType dtype = DType::kBFloat16;
  int heads = 1;  // query heads of the model
  int kv_heads = 1;
  int qk_width = 1;
  int v_width = 1;
  bool latent = false;  // values are the first columns of keys
  int page_tokens = 16;
};

// One sequence's rows in the cache and its queries.
struct DecodeLengths {
  int64_t cached = 0;
  std::vector<Range> visible;  // per query row
};

class DecodeProblem {
 public:
  DecodeProblem(const DecodeShape& shape, const std::vector<DecodeLengths>& lengths, Random& random);
  // Sequences refer to vectors of this object, which a move keeps and a copy would not.
  DecodeProblem(DecodeProblem&&) = default;

  const DecodeShape& shape() const { return shape_; }
  // Over all heads, or over query heads [begin, end) and the key heads they read.
  DecodeArgs Args(const Tensor& output, const Tensor& lse) const { return Args({0, shape_.heads}, output, lse); }
  DecodeArgs Args(HeadRange heads, const Tensor& output, const Tensor& lse) const;
  int64_t query_rows() const { return query_rows_; }
  size_t sequences() const { return lengths_.size(); }
  const DecodeSequence& sequence(size_t index) const { return sequences_[index]; }
  // The sequence alone, with dense keys and values. Cached rows that no query row sees are zero.
  Problem Dense(size_t sequence) const;
  // Sets one element of a cached row.
  void SetKey(size_t sequence, int64_t row, int kv_head, int i, float value);
  void SetValue(size_t sequence, int64_t row, int kv_head, int i, float value);

  float scale;
  float soft_cap = 0.0f;
  Tensor query;

 private:
  std::byte* Row(size_t sequence, int64_t row, int kv_head, bool value) const;
  bool Seen(size_t sequence, int64_t row) const;

  DecodeShape shape_;
  std::vector<DecodeLengths> lengths_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<DecodeSequence> sequences_;
  int64_t query_rows_ = 0;
  CacheLayer layer_;
  mutable std::vector<std::byte> memory_;
};

// Outputs that start as NaN.
struct Decoded {
  Decoded(int64_t rows, int heads, int width, Random* random = nullptr);
  Result Of(const DecodeSequence& sequence) const;
  Tensor output, lse;
};
Decoded Decode(const DecodeKernel& kernel, const DecodeProblem& problem, int threads = 1);

// What fp64 and a plain fp32 computation make of a problem, all sequences together.
class DecodeJudge {
 public:
  explicit DecodeJudge(const DecodeProblem& problem);
  // Fails the current test unless the result is at most twice as far from fp64 as the plain computation.
  void ExpectAccurate(const Decoded& decoded) const;

 private:
  const DecodeProblem& problem_;
  Result exact_, plain_;
};

// Odd shapes, several sequences, empty ranges, large scores.
DecodeProblem RandomDecodeProblem(Random& random);
std::string Describe(const DecodeProblem& problem);

// The implementations that serve these traits here.
std::vector<const DecodeKernel*> PresentDecoders(const DecodeTraits& traits);
// With the decoder that no processor here may have, over tiles in software.
std::vector<const DecodeKernel*> TestedDecoders(const DecodeTraits& traits);

}  // namespace tessera::testing
