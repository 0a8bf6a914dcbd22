// Plan once, execute many times: distributed attention over any plan and any communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/device/stream.h"
#include "runtime/engine/trace.h"

namespace tessera {

struct AttentionOptions {
  std::string kernel;     // implementation by name; empty = the fastest that serves the problem
  int threads = 1;        // compute threads of this rank
  bool trace = false;     // record a TraceEvent per step
  bool backward = false;  // also prepare Backward(): its plan, slots and communicators
};

// Per-head vectors, [query_heads] fp32 on the host whatever the problem's dtype; needed exactly when the problem's
// score options ask for them.
struct HeadVectors {
  std::span<const float> alibi_slopes;
  std::span<const float> sinks;
};

// The caller's tensors of a backward pass, local rows in the layout's order, host, unit width stride; shapes as in
// Forward.
struct BackwardTensors {
  ConstTensorView query, key, value;  // as given to Forward
  ConstTensorView output;             // what Forward returned
  ConstTensorView lse;
  ConstTensorView output_gradient;  // [local query rows, query_heads, v_width], the problem's dtype
  TensorView query_gradient;        // [local query rows, query_heads, qk_width], the problem's dtype
  TensorView key_gradient;          // [local key rows, kv_heads, qk_width], the problem's dtype
  TensorView value_gradient;        // [local key rows, kv_heads, v_width], the problem's dtype
  std::span<float> sink_gradient;   // [query_heads] fp32, summed over all ranks; empty without sinks
};

// What the last execution did, for records.
struct ExecutionStats {
  double seconds = 0;          // wall clock of this rank's program
  double compute_seconds = 0;  // inside kernels
  double exposed_seconds = 0;  // compute unit idle while communication was outstanding
  Traffic traffic;             // payload of this execution
  int64_t slot_bytes = 0;      // memory held for slots
};

// One rank's end of a distributed attention. Not thread-safe; one execution at a time.
class Attention {
 public:
  // Collective over `comm` (which must outlive this): all ranks compare problem and plan hashes and allocate slots.
  // FailedPrecondition on every rank when one disagrees, naming it; InvalidArgument when the communicator's size is not
  // the plan's; Unimplemented when no kernel serves the problem (with each one's reason).
  static StatusOr<std::unique_ptr<Attention>> Create(Communicator& comm, const PlanSpec& spec,
                                                     const AttentionOptions& options = {});
  ~Attention();

  // Collective, asynchronous on `stream`: the status of the execution is returned by stream.Synchronize(). Tensors stay
  // alive and untouched until then. Local rows follow the layout's order (PlanSpec::query_layout / key_layout):
  //   query [local query rows, query_heads, qk_width], key [local key rows, kv_heads, qk_width],
  //   value [local key rows, kv_heads, v_width], in the problem's dtype, host, unit width stride;
  //   output [local query rows, query_heads, v_width] in the problem's dtype; lse [local query rows, query_heads, 1]
  //   fp32, or fp64 when the problem is.
  // InvalidArgument, before anything moves, names a tensor whose shape, dtype or memory space is wrong. Never
  // partially valid: after an error the outputs are undefined and the object only reports that first error.
  Status Forward(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                 const TensorView& output, const TensorView& lse, const HeadVectors& vectors, CpuStream& stream);

  // Collective and asynchronous like Forward; needs options.backward and an earlier Forward (FailedPrecondition
  // otherwise). Gradients are overwritten, not added to. InvalidArgument, before anything moves, names a tensor that is
  // wrong or a gradient that overlaps another tensor. Key and value gradients are summed in fp32 (fp64 problems: in
  // fp64) in a fixed order and rounded once.
  Status Backward(const BackwardTensors& tensors, const HeadVectors& vectors, CpuStream& stream);

  const RankProgram& program() const;
  std::string_view kernel_name() const;
  const ExecutionStats& stats() const;  // of the last completed Forward
  const Trace& trace() const;

 private:
  struct State;
  explicit Attention(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tessera
