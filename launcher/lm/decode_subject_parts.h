// What the two kinds of decode subjects share.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/lm/decode_subject.h"
#include "partition/cache_sharding.h"
#include "runtime/base/tensor.h"
#include "runtime/latent/decode_setup.h"

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

// Latent attention: the decoder that a load and a method ask for; the step's input of all sequences [rows, D]; and the
// flops of the attention of a rank that holds `local_rows` of each context.
MlaDecoderOptions MlaOptionsFor(const DecodeLoad& load, const Method& method, int ranks);
std::vector<float> MlaStepInput(const DecodeLoad& load);
double MlaAttentionFlops(const DecodeLoad& load, const MlaDecoderOptions& options, const CacheSharding& sharding,
                         int rank, int64_t local_rows);
// Calls `store(first, rows)` with what a rank holds of a sequence's context, some rows at a time: local rows from
// `first` on, [count, 1, Cs + dr] of the load's dtype, dense, at most kFillTokens.
Status ForEachMlaRows(const DecodeLoad& load, int64_t sequence, const CacheSharding& sharding, int rank,
                      const std::function<Status(int64_t first, const TensorView& rows)>& store);

// Collective.
StatusOr<std::unique_ptr<DecodeSubject>> MakeMlaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method, const RandomMlaWeights& weights);
StatusOr<std::unique_ptr<DecodeSubject>> MakeGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                        const Method& method);
// On GPUs. FailedPrecondition says which driver or GPU is missing; Unimplemented when this build has no CUDA.
StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaMlaSubject(Communicator& comm, const DecodeLoad& load,
                                                            const Method& method, const RandomMlaWeights& weights);
StatusOr<std::unique_ptr<DecodeSubject>> MakeCudaGqaSubject(Communicator& comm, const DecodeLoad& load,
                                                            const Method& method);

}  // namespace tessera::launcher
