// Shapes of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) and the row operations around its attention.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

namespace tessera {

// How the pairs (x1, x2) that RoPE rotates lie in a row of width R: x1 = [0, R/2), x2 = [R/2, R); or x1 even, x2 odd
// columns, as DeepSeek's own checkpoints have it.
enum class RopeLayout : uint8_t { kHalfSplit, kInterleaved };

// YaRN context extension (Peng et al., arXiv 2309.00071) with DeepSeek's two temperature terms.
struct YarnScaling {
  double factor = 1.0;
  int64_t original_positions = 4096;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
  friend bool operator==(const YarnScaling&, const YarnScaling&) = default;
};

struct RopeOptions {
  double theta = 10000.0;
  RopeLayout layout = RopeLayout::kHalfSplit;
  std::optional<YarnScaling> yarn;
  friend bool operator==(const RopeOptions&, const RopeOptions&) = default;
};

// One attention layer. Letters as in docs/latent.md: D hidden, h heads, C latent, dn nope, dr rope, dv value.
struct MlaShape {
  int hidden = 0;
  int heads = 0;
  int query_rank = 0;  // q_lora_rank; 0 = queries come from the hidden state directly
  int latent = 0;      // kv_lora_rank
  int nope = 0;        // qk_nope_head_dim
  int rope = 0;        // qk_rope_head_dim, even
  int value = 0;       // v_head_dim
  float norm_epsilon = 1e-6f;
  RopeOptions rope_options;

  int cache_width() const { return latent + rope; }
  int qk_width() const { return nope + rope; }  // of the expanded form
  // (nope + rope)^-1/2, times (0.1 mscale_all_dim ln(factor) + 1)^2 under YaRN. Never (latent + rope)^-1/2.
  float Scale() const;
  friend bool operator==(const MlaShape&, const MlaShape&) = default;
};

// InvalidArgument naming the field, its value and what is allowed.
Status Validate(const MlaShape& shape);

// Rotates rows by their positions. Angles are computed in fp64 and rounded once.
class RopeTable {
 public:
  // Serves positions [0, positions).
  RopeTable(const RopeOptions& options, int width, int64_t positions);
  int64_t positions() const { return positions_; }
  // In place on one row of `width` fp32. Position in [0, positions()).
  void Apply(float* row, int64_t position) const;

 private:
  RopeLayout layout_;
  int half_;
  int64_t positions_;
  std::vector<float> cosine_, sine_;  // [positions, width / 2], already times YaRN's attention factor
};

// Frequencies of the width / 2 pairs and the factor on cosine and sine (1 without YaRN). fp64, for tables and oracles.
struct RopeFrequencies {
  std::vector<double> frequency;
  double attention_factor = 1.0;
};
RopeFrequencies ComputeRopeFrequencies(const RopeOptions& options, int width);

// row <- row * gamma / sqrt(mean(row^2) + epsilon), fp32 in place; `gamma` is as long as the row, or empty for ones.
// Returns 1 / sqrt(mean + epsilon).
float RmsNormRow(std::span<float> row, std::span<const float> gamma, float epsilon);

// A dense row-major matrix [rows, columns] of any dtype, host, not owned.
struct MatrixView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t columns = 0;
  float At(int64_t row, int64_t column) const { return LoadAsFloat(data, dtype, row * columns + column); }
  bool empty() const { return data == nullptr; }
};

// The weights of one layer in checkpoint layout: matrices are [out, in].
struct MlaWeights {
  MatrixView query;       // [h (dn + dr), D]; empty when query_rank > 0. Per head: nope rows, then rope rows
  MatrixView query_down;  // [query_rank, D]
  MatrixView query_norm;  // [query_rank, 1]
  MatrixView query_up;    // [h (dn + dr), query_rank]
  MatrixView kv_down;     // [C + dr, D]: latent rows, then the shared rope key
  MatrixView kv_norm;     // [C, 1], gamma
  MatrixView kv_up;       // [h (dn + dv), C]. Per head: key rows, then value rows
  MatrixView output;      // [D, h dv]
};
// InvalidArgument naming the matrix, its shape and what the layer needs.
Status Validate(const MlaShape& shape, const MlaWeights& weights);

}  // namespace tessera
