// A training step through the C++ door: threads as ranks; with MPI only the communicator differs (MakeMpiWorld).
#include <cmath>
#include <cstdio>
#include <vector>

#include "collectives/inproc/world.h"
#include "partition/planner.h"
#include "runtime/engine/attention.h"

namespace {

using namespace tessera;

// One rank of the job: every rank makes the same plan, holds the tokens that the plan gives it, and runs.
Status TrainStep(Communicator& comm) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 100;
  problem.query_heads = 4;
  problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 32;
  problem.dtype = DType::kFloat32;
  TESSERA_ASSIGN_OR_RETURN(problem.mask, Mask::Causal(100, 100));
  PlanOptions plan_options;
  plan_options.strategy = "zigzag";
  plan_options.ranks = comm.size();
  TESSERA_ASSIGN_OR_RETURN(const PlanSpec spec, MakePlanSpec(problem, plan_options));
  AttentionOptions options;
  options.backward = true;
  TESSERA_ASSIGN_OR_RETURN(const auto attention, Attention::Create(comm, spec, options));

  const int64_t rows = spec.query_layout.rows(comm.rank());
  const int64_t key_rows = spec.key_layout.rows(comm.rank());
  std::vector<float> q(rows * 4 * 32), k(key_rows * 2 * 32), v(key_rows * 2 * 32), out(q.size()), lse(rows * 4);
  for (int64_t row = 0; row < rows; ++row) {
    // Values that depend on the token, wherever it lies.
    const auto token = static_cast<float>(spec.query_layout.ToGlobal(comm.rank(), LocalToken{row}));
    std::fill_n(q.begin() + row * 4 * 32, 4 * 32, std::sin(token));
  }
  for (int64_t row = 0; row < key_rows; ++row) {
    const auto token = static_cast<float>(spec.key_layout.ToGlobal(comm.rank(), LocalToken{row}));
    std::fill_n(k.begin() + row * 2 * 32, 2 * 32, std::cos(token));
    std::fill_n(v.begin() + row * 2 * 32, 2 * 32, token);
  }
  const auto view = [](std::vector<float>& data, int64_t count, int heads, int width) {
    return TensorView::Dense(data.data(), DType::kFloat32, count, heads, width);
  };
  CpuStream stream;
  TESSERA_RETURN_IF_ERROR(attention->Forward(view(q, rows, 4, 32), view(k, key_rows, 2, 32), view(v, key_rows, 2, 32),
                                             view(out, rows, 4, 32), view(lse, rows, 4, 1), {}, stream));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize());

  std::vector<float> dout(out.size(), 1.0f), dq(q.size()), dk(k.size()), dv(v.size());
  BackwardTensors tensors;
  tensors.query = view(q, rows, 4, 32);
  tensors.key = view(k, key_rows, 2, 32);
  tensors.value = view(v, key_rows, 2, 32);
  tensors.output = view(out, rows, 4, 32);
  tensors.lse = view(lse, rows, 4, 1);
  tensors.output_gradient = view(dout, rows, 4, 32);
  tensors.query_gradient = view(dq, rows, 4, 32);
  tensors.key_gradient = view(dk, key_rows, 2, 32);
  tensors.value_gradient = view(dv, key_rows, 2, 32);
  TESSERA_RETURN_IF_ERROR(attention->Backward(tensors, {}, stream));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize());

  // Every query spreads a weight of 1 over the values: their gradients sum to the number of queries and heads.
  std::vector<float> sum(1);
  for (int64_t row = 0; row < key_rows * 2; ++row) sum[0] += dv[row * 32];
  TESSERA_ASSIGN_OR_RETURN(Request request, comm.AllReduceSum(sum, sum));
  TESSERA_RETURN_IF_ERROR(Wait(comm, request, "the sum of value gradients"));
  if (comm.rank() == 0) std::printf("gradients of values sum to %g\n", sum[0]);
  return std::abs(sum[0] - 400.0f) < 0.01f ? absl::OkStatus() : absl::InternalError("they must sum to 400");
}

}  // namespace

int main() {
  const Status status = RunRanks(2, {}, TrainStep);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
