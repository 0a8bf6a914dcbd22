// One attention layer with random weights and a random context, decoded by one method: what `bench decode` measures.
#pragma once

#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/lm/decode_shapes.h"
#include "launcher/lm/method.h"
#include "launcher/pass_runner.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

struct DecodeLoad {
  DecodeShape shape;
  int64_t context_tokens = 0;  // cached before the step, per sequence
  int64_t batch = 1;           // sequences
  int64_t query_tokens = 1;    // new tokens per sequence and step
  DType dtype = DType::kBFloat16;
  uint64_t seed = 1;
  Device device = Device::kCpu;
  std::string kernel;
  int threads = 1;
  int64_t rows() const { return batch * query_tokens; }
};

// What one step cost one rank.
struct DecodeCost {
  double seconds = 0;
  double projection_seconds = 0;
  double attention_seconds = 0;
  double slice_seconds = 0;  // TPLA: exchange of queries and values between slices
  double all_reduce_seconds = 0;
  int64_t bytes_received = 0;
  int64_t cache_bytes_read = 0;  // of the rank's rows, once
  double attention_flops = 0;
  bool split_known = true;  // whether the seconds of the parts are: a GPU's are not
};

class DecodeSubject {
 public:
  virtual ~DecodeSubject() = default;
  // Collective. One decode step; afterwards the cache is as it was.
  virtual StatusOr<DecodeCost> Step() = 0;
  // Collective. The last step's result for the first sequence, on rank 0: MLA [query_tokens, D], GQA [query_tokens, h,
  // width]. Elsewhere empty.
  virtual StatusOr<std::vector<float>> Result() = 0;
  virtual int64_t cache_bytes_per_token() const = 0;  // this rank's, of one layer, for a token it holds
  virtual int64_t cache_bytes() const = 0;            // this rank's, for the context of all sequences
  virtual std::string_view kernel_name() const = 0;
};

// Weights in checkpoint layout, bf16, variance about 1 / in.
class RandomMlaWeights {
 public:
  RandomMlaWeights(const MlaShape& shape, uint64_t seed);
  const MlaWeights& view() const { return view_; }

 private:
  std::vector<std::vector<std::byte>> storage_;
  MlaWeights view_;
};

// Collective. `weights` is null for GQA; everything outlives the subject. Errors as MlaDecoder, DecodeAttention and
// their namesakes on GPUs.
StatusOr<std::unique_ptr<DecodeSubject>> MakeDecodeSubject(Communicator& comm, const DecodeLoad& load,
                                                           const Method& method, const RandomMlaWeights* weights);

// The first sequence's result in fp64 (attention by the fp64 reference), on this rank alone.
StatusOr<std::vector<double>> DecodeTruth(const DecodeLoad& load, const RandomMlaWeights* weights);

// Normals of the cached token rows of a sequence, the same wherever and however they are stored.
//   MLA: [tokens, C + dr]; GQA: key [tokens, kv_heads, width], then value with `value` set.
void FillContext(const DecodeLoad& load, int64_t sequence, int64_t first_token, bool value, const TensorView& rows);
// New tokens' hidden states [query_tokens, D] (MLA) or queries [query_tokens, h, width] (GQA), fp32.
std::vector<float> StepInput(const DecodeLoad& load, int64_t sequence);

}  // namespace tessera::launcher
