// Executes the passes of a plan on this rank's tensors, wherever they are computed.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "collectives/communicator.h"
#include "launcher/host_tensor.h"
#include "partition/plan.h"
#include "runtime/engine/trace.h"

namespace tessera::launcher {

// Where attention is computed: this process's cores, or its GPU.
enum class Device : uint8_t { kCpu, kCuda };

struct RunnerOptions {
  std::string kernel;
  int threads = 1;
  bool trace = false;     // the CPU's only
  bool backward = false;  // also prepare the backward pass
};

// One rank's tensors of a plan.
struct LocalTensors {
  HostTensor query, key, value, output, lse;
  HostTensor output_gradient, query_gradient, key_gradient, value_gradient;  // with the backward pass only
};

// What one execution of a pass cost this rank.
struct PassCost {
  double seconds = 0;
  double compute_seconds = 0;  // inside kernels
  double exposed_seconds = 0;  // waiting for messages with nothing to compute
  bool split_known = true;     // whether the last two are
  int64_t bytes_received = 0;
  int64_t slot_bytes = 0;
};

class PassRunner {
 public:
  virtual ~PassRunner() = default;
  // Collective and synchronous. The backward pass needs a forward pass before it.
  virtual StatusOr<PassCost> Run(Pass pass) = 0;
  // Brings the results of the last passes into the host tensors. Not collective.
  virtual Status Fetch() = 0;
  virtual std::string_view kernel_name() const = 0;
  // What the records say it ran on beside the machine's own name; empty for the CPU.
  virtual std::string device_name() const = 0;
  virtual const Trace& trace() const = 0;  // of the last pass; empty unless asked for
};

// Collective. Communicator and tensors outlive the runner. Errors as Attention::Create and CudaAttention::Create;
// Unimplemented when this build has no CUDA.
StatusOr<std::unique_ptr<PassRunner>> MakePassRunner(Communicator& comm, Device device, const PlanSpec& spec,
                                                     const LocalTensors& tensors, const RunnerOptions& options);

// Collective. What a rank computes on: its GPU's name, or nothing for the CPU. All ranks succeed or all return the same
// error: FailedPrecondition says which driver or GPU is missing; Unimplemented when this build has no CUDA.
StatusOr<std::string> NameOf(Communicator& comm, Device device);

namespace internal {
StatusOr<std::string> GpuName(Communicator& comm);
StatusOr<std::unique_ptr<PassRunner>> MakeCpuRunner(Communicator& comm, const PlanSpec& spec,
                                                    const LocalTensors& tensors, const RunnerOptions& options);
StatusOr<std::unique_ptr<PassRunner>> MakeCudaRunner(Communicator& comm, const PlanSpec& spec,
                                                     const LocalTensors& tensors, const RunnerOptions& options);
}  // namespace internal
}  // namespace tessera::launcher
