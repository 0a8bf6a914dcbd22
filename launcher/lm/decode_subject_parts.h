// What the two kinds of decode subjects share.
#pragma once

#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/lm/decode_subject.h"
#include "runtime/base/tensor.h"

namespace tessera::launcher {

inline constexpr int64_t kFillTokens = 1024;  // context rows made at a time
inline constexpr int kPageTokens = 64;

// Dense rows of the load's dtype.
class RowBuffer {
 public:
  RowBuffer(DType dtype, int64_t rows, int heads, int width)
      : bytes_(rows * heads * width * SizeInBytes(dtype)),
        view_(TensorView::Dense(bytes_.data(), dtype, rows, heads, width)) {}
  const TensorView& view() const { return view_; }

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

// Attention of the whole layer: every head meets every row.
double AttentionFlops(const DecodeLoad& load, double heads, double widths, double local_share);
// So that no rank's clock starts while others still prepare.
Status WaitForAll(Communicator& comm);

// Collective.
StatusOr<std::unique_ptr<DecodeSubject>> MakeMlaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method, const RandomMlaWeights& weights);
StatusOr<std::unique_ptr<DecodeSubject>> MakeGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method);

}  // namespace tessera::launcher
