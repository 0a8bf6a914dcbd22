// Dense projections through oneDNN: the only place that includes it is kernels/cpu/linear.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/mla.h"
#include "runtime/base/status.h"

namespace tessera {

// A batch of linear maps with weights packed once into the library's preferred layout.
// y[r, b, :] = W[b] x[r, b, :], W[b] is [out, in].
class Linear {
 public:
  // Copies the weights, rounded to `compute`: fp32, or bf16 (inputs are rounded to bf16 too, sums are fp32).
  // `weights`: one [out, in] matrix per batch entry, equal shapes. `transposed`: the matrices are given as [in, out].
  // InvalidArgument when shapes disagree; Unimplemented when oneDNN has no implementation, with its reason.
  static StatusOr<Linear> Create(const std::vector<MatrixView>& weights, DType compute, bool transposed = false);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  int batch() const;
  int64_t in() const;
  int64_t out() const;
  int64_t weight_bytes() const;
  // x [rows, batch, in] fp32 with rows `x_row_stride` elements apart (batch entries dense within); y [rows, batch, out]
  // fp32, dense, overwritten. Any number of rows, zero too. Thread-safe.
  Status Apply(const float* x, int64_t rows, int64_t x_row_stride, float* y, int threads) const;
  Status Apply(const float* x, int64_t rows, float* y, int threads) const {
    return Apply(x, rows, int64_t{batch()} * in(), y, threads);
  }

 private:
  struct State;
  explicit Linear(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
