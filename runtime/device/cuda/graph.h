// A recorded piece of GPU work that is submitted again with one call.
#pragma once

#include <functional>
#include <memory>

#include "runtime/base/status.h"

struct CUstream_st;
struct CUgraphExec_st;

namespace tessera {

// Move-only. Pointers and sizes are those of the recording; what they point to may change between launches.
class CudaGraph {
 public:
  CudaGraph() = default;
  // Calls `record`, which submits work to `stream`, and to streams that events fork from it and join to it again.
  // Nothing runs. `record` must not allocate, wait for the GPU or use the legacy default stream: such a call fails, and
  // so does the capture.
  static StatusOr<CudaGraph> Capture(CUstream_st* stream, const std::function<Status()>& record);
  Status Launch(CUstream_st* stream) const;
  explicit operator bool() const { return executable_ != nullptr; }

 private:
  struct Destroy {
    void operator()(CUgraphExec_st* executable) const;
  };
  std::unique_ptr<CUgraphExec_st, Destroy> executable_;
};

// Whether what is submitted to the stream now is recorded instead of run.
StatusOr<bool> IsCapturing(CUstream_st* stream);

}  // namespace tessera
