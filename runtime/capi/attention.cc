// Execution through the C interface.
#include "runtime/engine/attention.h"

#include <algorithm>
#include <climits>
#include <functional>
#include <utility>

#include "runtime/capi/boundary.h"
#include "runtime/capi/handles.h"
#include "runtime/engine/tensor_check.h"

namespace tessera::capi {
namespace {

// Distances within a tensor stay far from where 64 bits end.
constexpr __int128 kMostElements = __int128{1} << 48;

// The view of a tensor; `written` ones must not meet themselves. Shapes are judged by the engine.
StatusOr<TensorView> ToView(const char* name, const tessera_tensor* tensor, bool written) {
  TESSERA_RETURN_IF_ERROR(CheckNotNull(name, tensor));
  const auto reject = [name](const char* field, int64_t value, const char* allowed) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", field, " is ", value, "; it must be ", allowed));
  };
  const std::optional<DType> known = ToDType(tensor->dtype);
  if (!known.has_value()) return reject("dtype", tensor->dtype, "a tessera_dtype (0 to 3)");
  const DType dtype = *known;
  const auto& [rows, heads, width] = tensor->shape;
  for (int axis = 0; axis < 3; ++axis) {
    const char* const fields[] = {"shape[0]", "shape[1]", "shape[2]"};
    const int64_t most = axis == 0 ? INT64_MAX : INT_MAX;
    if (tensor->shape[axis] < 0 || tensor->shape[axis] > most) {
      return reject(fields[axis], tensor->shape[axis], "a size from 0 to that of its type");
    }
  }
  if (__int128{rows} * heads * width > kMostElements) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": its shape has more than 2^48 elements"));
  }
  TensorView view = TensorView::Dense(tensor->data, dtype, rows, static_cast<int>(heads), static_cast<int>(width));
  if (reinterpret_cast<uintptr_t>(tensor->data) % SizeInBytes(dtype) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": data is not aligned to the ", SizeInBytes(dtype), " bytes of an element"));
  }
  const auto& [row_stride, head_stride, width_stride] = tensor->strides;
  if (row_stride == 0 && head_stride == 0 && width_stride == 0) return view;
  if (width > 1 && width_stride != 1) return reject("strides[2]", width_stride, "1: a head's numbers are neighbours");
  if (row_stride < 0) return reject("strides[0]", row_stride, "at least 0");
  if (head_stride < 0) return reject("strides[1]", head_stride, "at least 0");
  if (__int128{rows} * row_stride + __int128{heads} * head_stride > kMostElements) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": its strides span more than 2^48 elements"));
  }
  view.row_stride = row_stride;
  view.head_stride = head_stride;
  if (!written || rows == 0 || heads == 0 || width == 0) return view;
  // The axis of the smaller stride must step over a head, the other over all of the first.
  const bool rows_outside = rows == 1 || (heads > 1 && row_stride >= head_stride);
  const int64_t inner = rows_outside ? head_stride : row_stride;
  const int64_t inner_count = rows_outside ? heads : rows;
  const int64_t outer = rows_outside ? row_stride : head_stride;
  const int64_t outer_count = rows_outside ? rows : heads;
  const int64_t inner_extent = (inner_count - 1) * inner + width;
  if ((inner_count > 1 && inner < width) || (outer_count > 1 && outer < inner_extent)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: strides %d, %d let elements of a written tensor of shape %d x %d x %d meet", name,
                        row_stride, head_stride, rows, heads, width));
  }
  return view;
}

HeadVectors ToVectors(const float* alibi_slopes, const float* sinks, int heads) {
  const auto vector = [heads](const float* data) {
    return data == nullptr ? std::span<const float>() : std::span<const float>(data, heads);
  };
  return {vector(alibi_slopes), vector(sinks)};
}

Status StartForward(tessera_attention& handle, const tessera_forward_args& args, int heads) {
  TESSERA_ASSIGN_OR_RETURN(const ConstTensorView query, ToView("query", args.query, false));
  TESSERA_ASSIGN_OR_RETURN(const ConstTensorView key, ToView("key", args.key, false));
  TESSERA_ASSIGN_OR_RETURN(const ConstTensorView value, ToView("value", args.value, false));
  TESSERA_ASSIGN_OR_RETURN(const TensorView output, ToView("output", args.output, true));
  TESSERA_ASSIGN_OR_RETURN(const TensorView lse, ToView("lse", args.lse, true));
  const std::pair<const char*, const ConstTensorView*> inputs[] = {{"query", &query}, {"key", &key}, {"value", &value}};
  for (const auto& [name, input] : inputs) {
    TESSERA_RETURN_IF_ERROR(CheckDisjoint("output", output, name, *input));
    TESSERA_RETURN_IF_ERROR(CheckDisjoint("lse", lse, name, *input));
  }
  TESSERA_RETURN_IF_ERROR(CheckDisjoint("lse", lse, "output", output));
  return handle.attention->Forward(query, key, value, output, lse, ToVectors(args.alibi_slopes, args.sinks, heads),
                                   handle.stream);
}

Status StartBackward(tessera_attention& handle, const tessera_backward_args& args, int heads) {
  BackwardTensors tensors;
  TESSERA_ASSIGN_OR_RETURN(tensors.query, ToView("query", args.query, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.key, ToView("key", args.key, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.value, ToView("value", args.value, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.output, ToView("output", args.output, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.lse, ToView("lse", args.lse, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.output_gradient, ToView("output_gradient", args.output_gradient, false));
  TESSERA_ASSIGN_OR_RETURN(tensors.query_gradient, ToView("query_gradient", args.query_gradient, true));
  TESSERA_ASSIGN_OR_RETURN(tensors.key_gradient, ToView("key_gradient", args.key_gradient, true));
  TESSERA_ASSIGN_OR_RETURN(tensors.value_gradient, ToView("value_gradient", args.value_gradient, true));
  if (args.sink_gradient != nullptr) {
    tensors.sink_gradient = {args.sink_gradient, static_cast<size_t>(heads)};
    const auto written = ConstTensorView::Dense(args.sink_gradient, DType::kFloat32, 1, 1, heads);
    const auto sinks = ConstTensorView::Dense(args.sinks, DType::kFloat32, args.sinks == nullptr ? 0 : 1, 1, heads);
    TESSERA_RETURN_IF_ERROR(CheckDisjoint("sink_gradient", written, "sinks", sinks));
  }
  return handle.attention->Backward(tensors, ToVectors(args.alibi_slopes, args.sinks, heads), handle.stream);
}

template <typename Arguments>
Status Start(tessera_attention* handle, const Arguments* args,
             Status (*start)(tessera_attention&, const Arguments&, int heads)) {
  TESSERA_RETURN_IF_ERROR(CheckNotNull("attention", handle));
  TESSERA_RETURN_IF_ERROR(CheckStruct("args", args));
  if (handle->started) {
    return absl::FailedPreconditionError("attention: an execution was started and tessera_attention_wait not called");
  }
  TESSERA_RETURN_IF_ERROR(start(*handle, *args, handle->query_heads));
  handle->started = true;
  return absl::OkStatus();
}

Status Finish(tessera_attention* handle) {
  TESSERA_RETURN_IF_ERROR(CheckNotNull("attention", handle));
  if (!std::exchange(handle->started, false)) return absl::OkStatus();
  const Status status = handle->stream.Synchronize();
  // Whatever went wrong here, the peers must not wait for this rank.
  if (!status.ok()) handle->comm->ReportProgress({RankState::kFailed, handle->comm->progress().step});
  return status;
}

}  // namespace
}  // namespace tessera::capi

using namespace tessera;
using namespace tessera::capi;

tessera_result tessera_attention_create(tessera_comm* comm, const tessera_plan* plan,
                                        const tessera_attention_options* options, tessera_attention** attention) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("comm", comm));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("attention", attention));
    AttentionOptions converted;
    if (options != nullptr) {
      TESSERA_RETURN_IF_ERROR(CheckStruct("options", options));
      if (options->threads != 0) converted.threads = options->threads;
      if (options->kernel != nullptr) converted.kernel = options->kernel;
      converted.backward = options->backward != 0;
    }
    auto handle = std::make_unique<tessera_attention>();
    handle->comm = comm->comm;
    handle->query_heads = plan->spec.problem.query_heads;
    TESSERA_ASSIGN_OR_RETURN(handle->attention, Attention::Create(*comm->comm, plan->spec, converted));
    handle->kernel = std::string(handle->attention->kernel_name());
    *attention = handle.release();
    return absl::OkStatus();
  });
}

void tessera_attention_destroy(tessera_attention* attention) {
  Guard([&] {
    delete attention;
    return absl::OkStatus();
  });
}

tessera_result tessera_attention_start_forward(tessera_attention* attention, const tessera_forward_args* args) {
  return Guard([&] { return Start(attention, args, StartForward); });
}

tessera_result tessera_attention_start_backward(tessera_attention* attention, const tessera_backward_args* args) {
  return Guard([&] { return Start(attention, args, StartBackward); });
}

tessera_result tessera_attention_wait(tessera_attention* attention) {
  return Guard([&] { return Finish(attention); });
}

tessera_result tessera_attention_forward(tessera_attention* attention, const tessera_forward_args* args) {
  const tessera_result started = tessera_attention_start_forward(attention, args);
  return started == TESSERA_OK ? tessera_attention_wait(attention) : started;
}

tessera_result tessera_attention_backward(tessera_attention* attention, const tessera_backward_args* args) {
  const tessera_result started = tessera_attention_start_backward(attention, args);
  return started == TESSERA_OK ? tessera_attention_wait(attention) : started;
}

tessera_result tessera_attention_stats(const tessera_attention* attention, tessera_stats* stats) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("attention", attention));
    TESSERA_RETURN_IF_ERROR(CheckStruct("stats", stats, false));
    if (attention->started) return absl::FailedPreconditionError("attention: an execution is still running");
    const ExecutionStats& last = attention->attention->stats();
    stats->seconds = last.seconds;
    stats->compute_seconds = last.compute_seconds;
    stats->exposed_seconds = last.exposed_seconds;
    stats->bytes_sent = last.traffic.bytes_sent;
    stats->bytes_received = last.traffic.bytes_received;
    stats->messages_sent = last.traffic.messages_sent;
    stats->messages_received = last.traffic.messages_received;
    stats->slot_bytes = last.slot_bytes;
    return absl::OkStatus();
  });
}

const char* tessera_attention_kernel(const tessera_attention* attention) {
  return attention == nullptr ? nullptr : attention->kernel.c_str();
}
