// Stream capture: what is submitted to a captured stream becomes nodes of a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/virtual_gpu/cudart/stream.h"

namespace tessera::vgpu {

struct GraphNode {
  std::string what;
  std::function<void()> run;
  std::vector<int> after;  // earlier nodes
};

struct Capture {
  Stream* origin = nullptr;
  bool invalid = false;                       // an illegal call was made; the capture ends with an error
  std::vector<std::weak_ptr<Stream>> joined;  // streams that were drawn in by events
  std::vector<GraphNode> nodes;
};

cudaError_t AddToCapture(Stream& stream, std::string what, std::function<void()> run);
// For calls that a captured stream does not allow: says so, invalidates the capture.
cudaError_t RefuseInCapture(Stream& stream, const std::string& what);

}  // namespace tessera::vgpu
