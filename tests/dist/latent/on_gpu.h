// A latent decoder on this rank's GPU for tests.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "collectives/agreement.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/latent/cuda/mla_decoder.h"
#include "tests/support/gpu_world.h"

namespace tessera::latent_test {

using testing::Gpu;

// With a layer's input and output there.
class OnGpu {
 public:
  static StatusOr<std::unique_ptr<OnGpu>> Create(Gpu& gpu, const MlaShape& shape,
                                                 const CudaMlaDecoderOptions& options) {
    auto on = std::unique_ptr<OnGpu>(new OnGpu(gpu));
    TESSERA_ASSIGN_OR_RETURN(
        on->decoder_, CudaMlaDecoder::Create(*gpu.control, *gpu.data, gpu.device, shape, options, gpu.stream.handle()));
    const int64_t bytes = int64_t{options.max_sequences} * options.max_tokens_per_sequence * shape.hidden * kFloat;
    TESSERA_ASSIGN_OR_RETURN(on->hidden_,
                             DeviceBuffer::Allocate(gpu.device, bytes, "a test's input", gpu.stream.handle()));
    TESSERA_ASSIGN_OR_RETURN(on->out_,
                             DeviceBuffer::Allocate(gpu.device, bytes, "a test's output", gpu.stream.handle()));
    return on;
  }
  CudaMlaDecoder& decoder() { return *decoder_; }

  // hidden and out [step_rows, D].
  Status Attend(int layer, const std::vector<float>& hidden, std::vector<float>& out) {
    return Around(hidden, out, [&] { return Submit(layer); });
  }
  // The same by a graph, which is recorded when it is empty.
  Status AttendByGraph(int layer, const std::vector<float>& hidden, std::vector<float>& out, CudaGraph& graph) {
    if (!graph) {
      TESSERA_ASSIGN_OR_RETURN(graph, CudaGraph::Capture(gpu_.stream.handle(), [&] { return Submit(layer); }));
    }
    return Around(hidden, out, [&] { return graph.Launch(gpu_.stream.handle()); });
  }

 private:
  static constexpr int64_t kFloat = sizeof(float);
  explicit OnGpu(Gpu& gpu) : gpu_(gpu) {}
  Status Submit(int layer) {
    return decoder_->Attend(layer, reinterpret_cast<const float*>(hidden_.data()),
                            reinterpret_cast<float*>(out_.data()));
  }
  Status Around(const std::vector<float>& hidden, std::vector<float>& out, const std::function<Status()>& submit) {
    const auto bytes = static_cast<int64_t>(hidden.size()) * kFloat;
    TESSERA_RETURN_IF_ERROR(CopyAsync(hidden_.data(), hidden.data(), bytes, gpu_.stream.handle()));
    TESSERA_RETURN_IF_ERROR(submit());
    TESSERA_RETURN_IF_ERROR(CopyAsync(out.data(), out_.data(), bytes, gpu_.stream.handle()));
    return decoder_->Synchronize();
  }

  Gpu& gpu_;
  std::unique_ptr<CudaMlaDecoder> decoder_;
  DeviceBuffer hidden_, out_;
};

// Whether all ranks have the same bits.
inline bool SameEverywhere(Gpu& gpu, const std::vector<float>& values) {
  const std::string_view bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return AgreeOnHash(*gpu.control, std::hash<std::string_view>()(bytes), "comparing results").ok();
}

}  // namespace tessera::latent_test
