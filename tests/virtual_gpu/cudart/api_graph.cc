// Stream capture and graphs. A graph is a list of pieces of work in the order of their submission; launching it runs
// them one after the other on one stream, which is one of the orders that its edges allow.
#include <algorithm>
#include <cstdio>

#include "tests/virtual_gpu/cudart/node.h"

using namespace tessera::vgpu;

struct CUgraph_st {
  std::vector<GraphNode> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<GraphNode>> nodes;
};

namespace tessera::vgpu {

cudaError_t AddToCapture(Stream& stream, std::string what, std::function<void()> run) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  capture.nodes.push_back({std::move(what), std::move(run), std::move(stream.capture_tail)});
  stream.capture_tail = {static_cast<int>(capture.nodes.size()) - 1};
  return cudaSuccess;
}

cudaError_t RefuseInCapture(Stream& stream, const std::string& what) {
  std::fprintf(stderr, "vgpu: %s is not allowed while the stream is captured\n", what.c_str());
  stream.capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace tessera::vgpu

namespace {

// Whether everything that `tails` are is before `end`.
bool Joined(const std::vector<GraphNode>& nodes, const std::vector<int>& end, const std::vector<int>& tails) {
  std::vector<bool> before(nodes.size(), false);
  for (const int node : end) before[node] = true;
  for (int node = static_cast<int>(nodes.size()) - 1; node >= 0; --node) {
    if (!before[node]) continue;
    for (const int earlier : nodes[node].after) before[earlier] = true;
  }
  return std::all_of(tails.begin(), tails.end(), [&](int node) { return before[node]; });
}

// Leaves capture mode on every stream that takes part.
cudaError_t Finish(CUstream_st& stream, cudaGraph_t* graph) {
  const std::shared_ptr<Capture> capture = stream.capture;
  if (capture->origin != &stream) {
    capture->invalid = true;
    return cudaErrorStreamCaptureUnmatched;
  }
  bool joined = true;
  for (const auto& weak : capture->joined) {
    const auto other = weak.lock();
    if (other == nullptr || other->capture != capture) continue;
    joined = joined && Joined(capture->nodes, stream.capture_tail, other->capture_tail);
    other->capture = nullptr;
    other->capture_tail.clear();
  }
  stream.capture = nullptr;
  stream.capture_tail.clear();
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!joined) return cudaErrorStreamCaptureUnjoined;
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return cudaSuccess;
}

cudaError_t Status(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id) {
  return Call([&](Node& node) {
    const auto stream = node.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    if (id != nullptr) *id = reinterpret_cast<uintptr_t>(stream->capture.get());
    return cudaSuccess;
  });
}

}  // namespace

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  return Call([&](Node& node) {
    const auto stream = node.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream.get() == stream->device().legacy_stream()) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != nullptr) return cudaErrorInvalidValue;
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream.get();
    stream->capture_tail.clear();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return Call([&](Node& node) {
    *graph = nullptr;
    const auto stream = node.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    return stream->capture == nullptr ? cudaErrorInvalidValue : Finish(*stream, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return Status(stream, status, nullptr);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  return Status(stream, status, id);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return Call([&](Node&) {
    thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
    std::swap(current, *mode);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return Call([&](Node&) {
    if (graph == nullptr || nodes != nullptr) return cudaErrorInvalidValue;  // only the count
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return Call([&](Node&) {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *executable = new CUgraphExec_st{std::make_shared<const std::vector<GraphNode>>(graph->nodes)};
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t) {
  return Call([&](Node&) { return executable == nullptr ? cudaErrorInvalidValue : cudaSuccess; });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return Call([&](Node& node) {
    if (executable == nullptr) return cudaErrorInvalidValue;
    return Submit(node, stream, "cudaGraphLaunch", [nodes = executable->nodes](Device& device) {
      for (const GraphNode& graph_node : *nodes) {
        if (!device.poisoned()) graph_node.run();
      }
    });
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return Call([&](Node&) {
    if (graph == nullptr) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return Call([&](Node&) {
    if (executable == nullptr) return cudaErrorInvalidValue;
    delete executable;
    return cudaSuccess;
  });
}

}  // extern "C"
