// What `tessera bench kernel` measures: one operation on random tensors of one shape, by any implementation of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/decode.h"
#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/device/buffer.h"

namespace tessera::launcher {

class KernelSubject {
 public:
  virtual ~KernelSubject() = default;
  virtual std::string operation() const = 0;  // "decode", "forward" or "backward"
  virtual std::string problem() const = 0;    // as --problem takes it
  virtual DType dtype() const = 0;
  virtual double flops() const = 0;
  virtual double bytes() const = 0;  // that are read at least once
  // Root mean square of the difference to fp64, relative, that no sound implementation exceeds.
  virtual double tolerance() const = 0;

  virtual std::vector<std::string> implementations() const = 0;  // the fp64 reference is last
  virtual std::string WhyNot(size_t implementation) const = 0;
  // What a run needs and is not measured.
  virtual Status Prepare(size_t /*implementation*/, int /*threads*/) { return absl::OkStatus(); }
  // The whole problem once.
  virtual Status Run(size_t implementation, int threads) = 0;
  // The relative error, on the first tokens of the problem.
  virtual StatusOr<double> Error(size_t implementation, int threads) = 0;
};

// A problem string: [OPERATION:]HEADS/KV_HEADS/QK_WIDTH/V_WIDTH[/latent][:TOKENS[:MASK]].
struct KernelProblem {
  std::string operation = "decode";
  DType dtype = DType::kBFloat16;
  int heads = 0;
  int kv_heads = 0;
  int qk_width = 0;
  int v_width = 0;
  bool latent = false;   // values are the first columns of the keys; decode only
  int64_t tokens = 0;    // cached ones in decode, otherwise queries and keys
  std::string mask;      // as --mask of other commands; not in decode
  int page_tokens = 64;  // decode only

  std::string ToString() const;
};

// `tokens` where the text states none. InvalidArgument names the text and what is allowed.
StatusOr<KernelProblem> ParseKernelProblem(const std::string& text, DType dtype, int64_t tokens, int page_tokens);

// By any of `kernels`, of which the last is the reference; they outlive the subject. Neither fails for a parsed problem
// but for want of memory.
StatusOr<std::unique_ptr<KernelSubject>> MakeDecodeSubject(const KernelProblem& problem,
                                                           std::span<const DecodeKernel* const> kernels);
StatusOr<std::unique_ptr<KernelSubject>> MakeAttendSubject(const KernelProblem& problem,
                                                           std::span<const AttentionKernel* const> kernels);

// `count` elements, uniform in [-2, 2): any data but zeros and denormals will do, real data costs more power than
// those.
// In memory as plans and caches have it.
StatusOr<HostBuffer> RandomElements(DType dtype, size_t count, uint64_t seed);

// Root mean square of the difference over that of `exact`.
double RelativeDifference(const std::vector<float>& values, const std::vector<float>& exact);

}  // namespace tessera::launcher
