// A job under mpirun that loses a rank while GPUs exchange messages, or whose GPUs compute for longer than they may:
// cuda_failing_job <attention|decode> <none|absent|kill|stop|long> <victim> <deadline ms> <marker>.
// The marker is there for others to find the processes by.
#include <csignal>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "collectives/mpi/communicator.h"
#include "collectives/mpi/session.h"
#include "collectives/nccl/communicator.h"
#include "partition/planner.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/engine/cuda/attention.h"
#include "runtime/engine/cuda/decode.h"

namespace {

using namespace std::chrono_literals;
using tessera::DType;
using tessera::Status;
using tessera::StatusOr;
using tessera::TensorView;

// One rank and its operator, seen by what the two have in common.
struct Job {
  tessera::Communicator& control;
  tessera::StreamCommunicator& data;
  tessera::CudaDevice device;
  tessera::CudaStream stream;
  std::vector<tessera::DeviceBuffer> memory;
  std::function<Status()> run;
  std::function<Status()> synchronize;

  StatusOr<TensorView> Tensor(DType dtype, int64_t rows, int heads, int width) {
    TensorView view = TensorView::Dense(nullptr, dtype, rows, heads, width);
    TESSERA_ASSIGN_OR_RETURN(memory.emplace_back(),
                             tessera::DeviceBuffer::Allocate(device, view.bytes(), "a tensor", stream.handle()));
    view.data = memory.back().data();
    view.space = tessera::MemorySpace::kDevice;
    TESSERA_RETURN_IF_ERROR(tessera::FillAsync(view.data, 0, view.bytes(), stream.handle()));
    return view;
  }
};

// `long_steps`: steps that a virtual GPU, which interprets, takes a good part of a second for, and is not given.
Status MakeAttention(Job& job, bool long_steps) {
  const int64_t rows = long_steps ? 1024 : 16;
  tessera::CudaAttentionOptions options;
  if (long_steps) options.longest_step = 30ms;
  tessera::Problem problem;
  problem.query_tokens = problem.key_tokens = rows * job.control.size();
  problem.query_heads = problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 64;
  problem.dtype = DType::kBFloat16;
  TESSERA_ASSIGN_OR_RETURN(problem.mask, tessera::Mask::Full(problem.query_tokens, problem.key_tokens));
  TESSERA_ASSIGN_OR_RETURN(const tessera::PlanSpec spec,
                           tessera::MakePlanSpec(problem, {.strategy = "ring", .ranks = job.control.size()}));
  TESSERA_ASSIGN_OR_RETURN(auto made, tessera::CudaAttention::Create(job.control, job.data, job.device, spec, options));
  const std::shared_ptr<tessera::CudaAttention> attention = std::move(made);
  std::vector<TensorView> tensors(4);
  for (TensorView& tensor : tensors) {
    TESSERA_ASSIGN_OR_RETURN(tensor, job.Tensor(DType::kBFloat16, rows, 2, 64));
  }
  TESSERA_ASSIGN_OR_RETURN(const TensorView lse, job.Tensor(DType::kFloat32, rows, 2, 1));
  job.run = [&job, attention, tensors, lse] {
    return attention->Forward(tensors[0], tensors[1], tensors[2], tensors[3], lse, {}, job.stream.handle());
  };
  job.synchronize = [attention] { return attention->Synchronize(); };
  return absl::OkStatus();
}

Status MakeDecode(Job& job) {
  tessera::DecodeSpec spec;
  spec.method = tessera::DecodeMethod::kTree;
  spec.ranks = job.control.size();
  spec.heads = 4;
  spec.qk_width = spec.v_width = 64;
  TESSERA_ASSIGN_OR_RETURN(auto made,
                           tessera::CudaDecodeAttention::Create(job.control, job.data, job.device, spec, {}));
  const std::shared_ptr<tessera::CudaDecodeAttention> attention = std::move(made);
  TESSERA_ASSIGN_OR_RETURN(auto step_made, attention->MakeStep());
  const auto step = std::make_shared<tessera::CudaDecodeStep>(std::move(step_made));
  const std::vector<tessera::Range> nothing(1);
  const tessera::DecodeSequence sequence{0, {}, nothing};
  TESSERA_RETURN_IF_ERROR(step->Upload({&sequence, 1}, job.stream.handle()));
  TESSERA_ASSIGN_OR_RETURN(const TensorView query, job.Tensor(DType::kBFloat16, 1, 4, 64));
  TESSERA_ASSIGN_OR_RETURN(const TensorView output, job.Tensor(DType::kFloat32, 1, 4, 64));
  TESSERA_ASSIGN_OR_RETURN(const TensorView lse, job.Tensor(DType::kFloat32, 1, 4, 1));
  tessera::CacheLayer cache;
  cache.qk_width = cache.v_width = cache.page_tokens = 64;
  job.run = [&job, attention, step, query, output, lse, cache] {
    return attention->Run(query, cache, *step, output, lse, job.stream.handle());
  };
  job.synchronize = [attention, step] { return attention->Synchronize(); };
  return absl::OkStatus();
}

Status RunJob(Job& job, const std::string& fault, int victim) {
  for (int i = 0; i < 2; ++i) {
    TESSERA_RETURN_IF_ERROR(job.run());
    TESSERA_RETURN_IF_ERROR(job.synchronize());
  }
  if (job.control.rank() == victim && fault != "none" && fault != "long") {
    if (fault == "absent") std::this_thread::sleep_for(60s);
    TESSERA_RETURN_IF_ERROR(job.run());
    std::raise(fault == "stop" ? SIGSTOP : SIGKILL);
  }
  // A rank that is far ahead of the victim: there are no messages of it to find.
  for (int i = 0; i < 3; ++i) TESSERA_RETURN_IF_ERROR(job.run());
  const Status status = job.synchronize();
  if (status != job.synchronize() || (!status.ok() && status != job.run())) {
    return absl::InternalError("the error does not stick");
  }
  // What the GPU still had to do has been given up.
  TESSERA_RETURN_IF_ERROR(job.stream.Synchronize("the aborted operation", 3000ms));
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return EXIT_FAILURE;
  auto session = tessera::MpiSession::Create(&argc, &argv, {.watch_termination = true});
  if (!session.ok()) return EXIT_FAILURE;
  const Status status = [&]() -> Status {
    TESSERA_ASSIGN_OR_RETURN(const auto control,
                             tessera::MakeMpiWorld({.deadline = std::chrono::milliseconds(std::atoi(argv[4]))}));
    TESSERA_ASSIGN_OR_RETURN(const tessera::CudaDevice device, tessera::OpenDeviceOfRank(*control));
    TESSERA_ASSIGN_OR_RETURN(const auto data, tessera::MakeNcclCommunicator(*control, device));
    TESSERA_ASSIGN_OR_RETURN(tessera::CudaStream stream, tessera::CudaStream::Create(device));
    Job job{*control, *data, device, std::move(stream), {}, {}, {}};
    TESSERA_RETURN_IF_ERROR(argv[1] == std::string("decode") ? MakeDecode(job)
                                                             : MakeAttention(job, argv[2] == std::string("long")));
    const Status ran = RunJob(job, argv[2], std::atoi(argv[3]));
    if (!ran.ok()) (*session)->Abort(3, std::string(ran.message()));
    return ran;
  }();
  if (!status.ok()) (*session)->Abort(4, std::string(status.message()));
  return EXIT_SUCCESS;
}
