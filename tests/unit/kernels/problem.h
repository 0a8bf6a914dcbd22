// Random attention problems for kernel tests: tensors in awkward memory, shards as tiles, and two judges (the fp64
// oracle and a plain fp32 softmax).
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention.h"

namespace tessera::testing {

// FNV-1a, so that a case has the same seed everywhere and may be rerun by its name.
uint64_t SeedOf(std::string_view name);

class Random {
 public:
  explicit Random(std::string_view name) : engine_(SeedOf(name)) {}
  // Both ends included.
  int64_t Integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  float Normal() { return std::normal_distribution<float>()(engine_); }
  float Uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  bool OneIn(int n) { return Integer(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

// A tensor whose rows are unaligned and whose unused elements are NaN.
class Tensor {
 public:
  Tensor() = default;
  // Dense when `random` is null, otherwise padded, offset by an odd number of elements, and rows or heads outermost.
  Tensor(DType dtype, int64_t rows, int heads, int width, Random* random = nullptr);

  TensorView view() const;
  float Get(int64_t row, int head, int i) const { return LoadAsFloat(view().At(row, head), dtype_, i); }
  void Set(int64_t row, int head, int i, float value) { StoreFromFloat(view().At(row, head), dtype_, i, value); }
  void Fill(float value);
  void FillNormal(Random& random, float deviation);
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  DType dtype_ = DType::kFloat32;
  int64_t rows_ = 0;
  int heads_ = 0;
  int width_ = 0;
  int64_t row_stride_ = 0;
  int64_t head_stride_ = 0;
  int64_t offset_ = 0;
  mutable std::vector<std::byte> bytes_;
};

// A whole problem: row = global token. Query head h reads key head h / (heads of query / heads of key).
struct Problem {
  DType dtype = DType::kFloat32;
  Tensor query, key, value;
  std::vector<Band> bands;
  ScoreArgs score;  // without slopes, which ArgsOf() and Oracle() add
  std::vector<float> slopes;
  std::vector<float> sinks;

  int64_t query_tokens() const { return query.view().rows; }
  int64_t key_tokens() const { return key.view().rows; }
  int heads() const { return query.view().heads; }
  int group() const { return query.view().heads / key.view().heads; }
  int v_width() const { return value.view().width; }
  std::string Describe() const;
};

struct Shape {
  DType dtype = DType::kFloat32;
  int64_t query_tokens = 0;
  int64_t key_tokens = 0;
  int heads = 1;
  int kv_heads = 1;
  int qk_width = 1;
  int v_width = 1;
};

// Normal queries, keys and values in awkward memory, scale 1/sqrt(width), no bands.
Problem MakeProblem(const Shape& shape, Random& random);
// Every dimension, mask and score option at random; the dtype too unless it is given.
Problem RandomProblem(Random& random, std::optional<DType> dtype = std::nullopt);
std::vector<Band> RandomBands(int64_t query_tokens, int64_t key_tokens, Random& random);

// Final results of all rows, row = global token.
struct Result {
  std::vector<double> output;  // [Sq, H, Dv]
  std::vector<double> lse;     // [Sq, H]
};

Result Oracle(const Problem& problem);
// Two passes in fp32 arithmetic, result rounded to the problem's dtype: what a careful direct program computes. With
// `bf16_weights` each weight is rounded before it meets its value, as in a product of bf16 matrices.
Result Plain(const Problem& problem, bool bf16_weights = false);

// Partials of all rows, dense; starts as the identity.
struct Partials {
  Partials(int64_t rows, int heads, int width);
  Tensor output, lse;
};

// One call over dense whole-sequence tensors, tile by tile as given.
AttendArgs ArgsOf(const Problem& problem, const Partials& partials, std::span<const Tile> tiles);
// The tile of all queries and all keys.
Tile WholeTile(const Problem& problem);
// Sinks and rounding applied.
Result Finish(const Problem& problem, const Partials& partials);
// Runs `kernel` on the whole problem in one call.
Result Compute(const AttentionKernel& kernel, const Problem& problem);

// Root mean squares.
double Rms(const std::vector<double>& values);
double RmsError(const std::vector<double>& values, const std::vector<double>& exact);

// Fails the current test unless `result` is at most twice as far from the oracle as the plain computation.
void ExpectAccurate(const Problem& problem, const Result& result, bool bf16_weights = false);

// Whether `kernel` serves tensors of `dtype` on this machine.
bool Serves(const AttentionKernel& kernel, DType dtype);
// Whether it multiplies weights in bf16: such a kernel takes nothing but bf16.
inline bool RoundsWeights(const AttentionKernel& kernel) {
  return !Serves(kernel, DType::kFloat32);
}
// The implementations that serve this machine: all of them serve bf16, some nothing else.
std::vector<const AttentionKernel*> PresentKernels();
// And what no registry has: the AMX kernel on a tile unit in software.
std::vector<const AttentionKernel*> TestedKernels();

}  // namespace tessera::testing
