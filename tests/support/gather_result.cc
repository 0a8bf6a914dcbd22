#include "tests/support/gather_result.h"

#include <algorithm>

#include "tests/support/ranks.h"

namespace tessera::testing {
namespace {

// Every element is owned by exactly one rank, so a sum over zeros elsewhere gathers it.
Status GatherRows(Communicator& comm, const Layout& layout, int64_t row_elements, std::vector<double>& values) {
  std::vector<float> send(values.size(), 0.0f), sum(values.size());
  for (int64_t row = 0; row < layout.rows(comm.rank()); ++row) {
    const auto first = static_cast<int64_t>(layout.ToGlobal(comm.rank(), LocalToken{row})) * row_elements;
    std::copy_n(values.begin() + first, row_elements, send.begin() + first);
  }
  TESSERA_RETURN_IF_ERROR(Finish(comm, comm.AllReduceSum(send, sum), "gathering the result"));
  values.assign(sum.begin(), sum.end());
  return absl::OkStatus();
}

}  // namespace

Status GatherResult(Communicator& comm, const PlanSpec& spec, Result& result) {
  const Problem& p = spec.problem;
  TESSERA_RETURN_IF_ERROR(GatherRows(comm, spec.query_layout, int64_t{p.query_heads} * p.v_width, result.output));
  return GatherRows(comm, spec.query_layout, p.query_heads, result.lse);
}

Status GatherGradients(Communicator& comm, const PlanSpec& spec, Gradients& gradients) {
  const Problem& p = spec.problem;
  const int64_t key_elements = int64_t{p.kv_heads} * p.qk_width, value_elements = int64_t{p.kv_heads} * p.v_width;
  TESSERA_RETURN_IF_ERROR(GatherRows(comm, spec.query_layout, int64_t{p.query_heads} * p.qk_width, gradients.query));
  TESSERA_RETURN_IF_ERROR(GatherRows(comm, spec.key_layout, key_elements, gradients.key));
  TESSERA_RETURN_IF_ERROR(GatherRows(comm, spec.key_layout, value_elements, gradients.value));
  gradients.sink.resize(p.score.sink ? p.query_heads : 0);
  return Finish(comm, comm.Broadcast(std::as_writable_bytes(std::span(gradients.sink)), 0), "the sinks' gradient");
}

}  // namespace tessera::testing
