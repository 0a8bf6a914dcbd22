// Runs plans on GPUs, one per rank.
#include <chrono>
#include <vector>

#include "collectives/agreement.h"
#include "collectives/nccl/communicator.h"
#include "launcher/pass_runner.h"
#include "runtime/base/elapsed.h"
#include "runtime/engine/cuda/attention.h"

namespace tessera::launcher {
namespace {

// A tensor of the caller and its place on the GPU.
struct OnDevice {
  const HostTensor* host = nullptr;
  bool result = false;  // comes back; the others go there
  DeviceBuffer memory;
  TensorView view;
};

class CudaRunner final : public PassRunner {
 public:
  static StatusOr<std::unique_ptr<PassRunner>> Create(Communicator& comm, const PlanSpec& spec,
                                                      const LocalTensors& tensors, const RunnerOptions& options) {
    auto runner = std::make_unique<CudaRunner>();
    TESSERA_ASSIGN_OR_RETURN(runner->device_, OpenDeviceOfRank(comm));
    TESSERA_ASSIGN_OR_RETURN(runner->data_, MakeNcclCommunicator(comm, *runner->device_));
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, runner->Upload(tensors, options.backward), "copying to the GPU"));
    TESSERA_ASSIGN_OR_RETURN(runner->attention_, CudaAttention::Create(comm, *runner->data_, *runner->device_, spec,
                                                                       {options.kernel, options.backward}));
    return runner;
  }

  StatusOr<PassCost> Run(Pass pass) override {
    data_->ResetTraffic();
    const auto start = std::chrono::steady_clock::now();
    if (pass == Pass::kForward) {
      TESSERA_RETURN_IF_ERROR(attention_->Forward(view(0), view(1), view(2), view(3), view(4), {}, stream_.handle()));
    } else {
      const CudaBackwardTensors tensors{view(0), view(1), view(2), view(3), view(4),
                                        view(5), view(6), view(7), view(8), nullptr};
      TESSERA_RETURN_IF_ERROR(attention_->Backward(tensors, {}, stream_.handle()));
    }
    TESSERA_RETURN_IF_ERROR(attention_->Synchronize());
    PassCost cost;
    cost.seconds = SecondsSince(start);
    cost.split_known = false;
    cost.bytes_received = data_->traffic().bytes_received;
    cost.slot_bytes = attention_->slot_bytes();
    return cost;
  }

  Status Fetch() override {
    for (const OnDevice& tensor : tensors_) {
      if (!tensor.result) continue;
      TESSERA_RETURN_IF_ERROR(
          CopyAsync(tensor.host->view().data, tensor.view.data, tensor.view.bytes(), stream_.handle()));
    }
    return stream_.Synchronize("copying results from the GPU");
  }
  std::string_view kernel_name() const override { return attention_->kernel_name(); }
  std::string device_name() const override { return device_->name(); }
  const Trace& trace() const override { return trace_; }

 private:
  const TensorView& view(int i) const { return tensors_[i].view; }

  Status Upload(const LocalTensors& t, bool backward) {
    TESSERA_ASSIGN_OR_RETURN(stream_, CudaStream::Create(*device_));
    struct Operand {
      const HostTensor* host;
      bool result;
    };
    std::vector<Operand> operands = {
        {&t.query, false}, {&t.key, false}, {&t.value, false}, {&t.output, true}, {&t.lse, true}};
    if (backward) {
      operands.insert(
          operands.end(),
          {{&t.output_gradient, false}, {&t.query_gradient, true}, {&t.key_gradient, true}, {&t.value_gradient, true}});
    }
    for (const auto& [host, result] : operands) {
      OnDevice tensor{host, result, {}, host->view()};
      TESSERA_ASSIGN_OR_RETURN(tensor.memory, DeviceBuffer::Allocate(*device_, tensor.view.bytes(),
                                                                     "a tensor of the run", stream_.handle()));
      tensor.view.data = tensor.memory.data();
      tensor.view.space = MemorySpace::kDevice;
      if (!result) {
        TESSERA_RETURN_IF_ERROR(CopyAsync(tensor.view.data, host->view().data, tensor.view.bytes(), stream_.handle()));
      }
      tensors_.push_back(std::move(tensor));
    }
    return stream_.Synchronize("copying tensors to the GPU");
  }

  std::optional<CudaDevice> device_;
  CudaStream stream_;
  std::unique_ptr<StreamCommunicator> data_;
  std::vector<OnDevice> tensors_;  // in the order of LocalTensors
  std::unique_ptr<CudaAttention> attention_;
  Trace trace_;
};

}  // namespace

StatusOr<std::unique_ptr<PassRunner>> internal::MakeCudaRunner(Communicator& comm, const PlanSpec& spec,
                                                               const LocalTensors& tensors,
                                                               const RunnerOptions& options) {
  return CudaRunner::Create(comm, spec, tensors, options);
}

StatusOr<std::string> internal::GpuName(Communicator& comm) {
  TESSERA_ASSIGN_OR_RETURN(const CudaDevice device, OpenDeviceOfRank(comm));
  return device.name();
}

}  // namespace tessera::launcher
