#include "launcher/pass_runner.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"

namespace tessera::launcher {
namespace {

class CpuRunner final : public PassRunner {
 public:
  CpuRunner(std::unique_ptr<Attention> attention, const LocalTensors& tensors)
      : attention_(std::move(attention)), tensors_(tensors) {}

  StatusOr<PassCost> Run(Pass pass) override {
    TESSERA_RETURN_IF_ERROR(pass == Pass::kForward ? Forward() : Backward());
    TESSERA_RETURN_IF_ERROR(stream_.Synchronize());
    const ExecutionStats& stats = attention_->stats();
    return PassCost{stats.seconds, stats.compute_seconds,        stats.exposed_seconds,
                    true,          stats.traffic.bytes_received, stats.slot_bytes};
  }
  Status Fetch() override { return absl::OkStatus(); }
  std::string_view kernel_name() const override { return attention_->kernel_name(); }
  std::string device_name() const override { return ""; }
  const Trace& trace() const override { return attention_->trace(); }

 private:
  Status Forward() {
    const LocalTensors& t = tensors_;
    return attention_->Forward(t.query.view(), t.key.view(), t.value.view(), t.output.view(), t.lse.view(), {},
                               stream_);
  }
  Status Backward() {
    const LocalTensors& t = tensors_;
    const BackwardTensors tensors{t.query.view(),
                                  t.key.view(),
                                  t.value.view(),
                                  t.output.view(),
                                  t.lse.view(),
                                  t.output_gradient.view(),
                                  t.query_gradient.view(),
                                  t.key_gradient.view(),
                                  t.value_gradient.view(),
                                  {}};
    return attention_->Backward(tensors, {}, stream_);
  }

  std::unique_ptr<Attention> attention_;
  const LocalTensors& tensors_;
  CpuStream stream_;
};

}  // namespace

StatusOr<std::unique_ptr<PassRunner>> internal::MakeCpuRunner(Communicator& comm, const PlanSpec& spec,
                                                              const LocalTensors& tensors,
                                                              const RunnerOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(
      auto attention,
      Attention::Create(comm, spec, {options.kernel, options.threads, options.trace, options.backward}));
  return std::make_unique<CpuRunner>(std::move(attention), tensors);
}

StatusOr<std::unique_ptr<PassRunner>> MakePassRunner(Communicator& comm, Device device, const PlanSpec& spec,
                                                     const LocalTensors& tensors, const RunnerOptions& options) {
  if (device == Device::kCpu) return internal::MakeCpuRunner(comm, spec, tensors, options);
  return internal::MakeCudaRunner(comm, spec, tensors, options);
}

StatusOr<std::string> NameOf(Communicator& comm, Device device) {
  if (device == Device::kCpu) return std::string();
  return internal::GpuName(comm);
}

}  // namespace tessera::launcher
