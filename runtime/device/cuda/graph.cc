#include "runtime/device/cuda/graph.h"

#include <cuda_runtime.h>

#include "runtime/device/cuda/check.h"

namespace tessera {

void CudaGraph::Destroy::operator()(CUgraphExec_st* executable) const {
  (void)cudaGraphExecDestroy(executable);
}

StatusOr<CudaGraph> CudaGraph::Capture(CUstream_st* stream, const std::function<Status()>& record) {
  // Relaxed: other threads of the process may allocate and wait meanwhile.
  TESSERA_RETURN_IF_ERROR(
      CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture"));
  const Status recorded = record();
  // Capture mode must be left also when recording failed.
  cudaGraph_t graph = nullptr;
  const Status ended = CheckCuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  CudaGraph result;
  Status instantiated;
  if (recorded.ok() && ended.ok()) {
    cudaGraphExec_t executable = nullptr;
    instantiated = CheckCuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    result.executable_.reset(executable);
  }
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  TESSERA_RETURN_IF_ERROR(recorded);
  TESSERA_RETURN_IF_ERROR(ended);
  TESSERA_RETURN_IF_ERROR(instantiated);
  return result;
}

Status CudaGraph::Launch(CUstream_st* stream) const {
  return CheckCuda(cudaGraphLaunch(executable_.get(), stream), "cudaGraphLaunch");
}

StatusOr<bool> IsCapturing(CUstream_st* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing"));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace tessera
