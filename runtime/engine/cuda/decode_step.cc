#include "runtime/engine/cuda/decode_step.h"

#include <algorithm>
#include <limits>

#include "kernels/decode_check.h"
#include "runtime/device/cuda/graph.h"

namespace tessera {
namespace {

// What the sequences have in all.
struct Totals {
  int64_t rows = 0;
  int64_t pages = 0;
};

StatusOr<Totals> CheckWithin(const DecodeStepLimits& limits, std::span<const DecodeSequence> sequences) {
  const auto beyond = [](const std::string& what, int64_t count, const char* option, int64_t most) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequences: ", what, " ", count, "; ", option, " of this attention is ", most));
  };
  const auto count = static_cast<int64_t>(sequences.size());
  if (count > limits.sequences) return beyond("there are", count, "max_sequences", limits.sequences);
  Totals totals;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto rows = static_cast<int64_t>(sequences[i].visible.size());
    const auto pages = static_cast<int64_t>(sequences[i].pages.size());
    if (rows > limits.rows_per_sequence) {
      return beyond(absl::StrCat("query rows of number ", i, " are"), rows, "max_rows_per_sequence",
                    limits.rows_per_sequence);
    }
    if (pages * limits.page_tokens > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat("sequences: cached rows of number ", i, " are ",
                                                     pages * limits.page_tokens, "; a kernel counts to 2^31 - 1"));
    }
    totals.rows += rows;
    totals.pages += pages;
  }
  if (totals.rows > limits.rows) return beyond("query rows are", totals.rows, "max_rows", limits.rows);
  if (totals.pages > limits.pages) return beyond("pages are", totals.pages, "max_pages", limits.pages);
  return totals;
}

// The CPU's check of the sequences. Tensors without heads and a cache whose address nobody follows stand for what the
// launch will bring.
Status CheckSequences(const DecodeStepLimits& limits, std::span<const DecodeSequence> sequences, int64_t rows,
                      const std::byte* any_memory) {
  DecodeArgs args;
  args.cache.qk_width = args.cache.v_width = 1;
  args.cache.page_tokens = limits.page_tokens;
  args.cache.key = args.cache.value = any_memory;
  args.query = ConstTensorView::Dense(nullptr, args.cache.dtype, rows, 0, 1);
  args.output = args.lse = TensorView::Dense(nullptr, DType::kFloat32, rows, 0, 1);
  args.sequences = sequences;
  return CheckDecodeArgs(args);
}

}  // namespace

Status Validate(const DecodeStepLimits& limits) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // the tables name each other's places by int32
  const auto in_range = [](const char* field, int64_t value, int64_t least, int64_t most) -> Status {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("cuda decode: ", field, " is ", value, "; it must be from ", least, " to ", most));
  };
  TESSERA_RETURN_IF_ERROR(in_range("max_sequences", limits.sequences, 1, 65535));
  TESSERA_RETURN_IF_ERROR(in_range("max_rows_per_sequence", limits.rows_per_sequence, 1, 65536));
  TESSERA_RETURN_IF_ERROR(in_range("max_rows", limits.rows, 0, kMost));
  TESSERA_RETURN_IF_ERROR(in_range("max_pages", limits.pages, 0, kMost));
  return in_range("page_tokens", limits.page_tokens, 1, 65536);
}

StatusOr<CudaDecodeStep> CudaDecodeStep::Create(const CudaDevice& device, const CudaStream& own,
                                                const DecodeStepLimits& limits) {
  CudaDecodeStep step;
  step.limits_ = limits;
  step.own_ = own.handle();
  step.visible_offset_ = limits.sequences * static_cast<int64_t>(sizeof(cuda::DecodeRows));
  step.pages_offset_ = step.visible_offset_ + limits.rows * static_cast<int64_t>(sizeof(cuda::VisibleRows));
  const int64_t bytes = step.pages_offset_ + limits.pages * static_cast<int64_t>(sizeof(int32_t));
  TESSERA_ASSIGN_OR_RETURN(step.staging_, PinnedBuffer::Allocate(device, bytes, "the tables of a decode step"));
  TESSERA_ASSIGN_OR_RETURN(step.tables_,
                           DeviceBuffer::Allocate(device, bytes, "the tables of a decode step", own.handle()));
  TESSERA_ASSIGN_OR_RETURN(step.copied_, CudaEvent::Create(device));
  TESSERA_RETURN_IF_ERROR(FillAsync(step.tables_.data(), 0, step.pages_offset_, own.handle()));
  TESSERA_RETURN_IF_ERROR(own.Synchronize("making the tables of a decode step"));
  return step;
}

Status CudaDecodeStep::Upload(std::span<const DecodeSequence> sequences, CUstream_st* stream) {
  TESSERA_ASSIGN_OR_RETURN(const Totals totals, CheckWithin(limits_, sequences));
  TESSERA_RETURN_IF_ERROR(CheckSequences(limits_, sequences, totals.rows, staging_.data()));
  TESSERA_ASSIGN_OR_RETURN(const bool capturing, IsCapturing(stream));
  if (capturing) {
    return absl::FailedPreconditionError(
        "sequences: a step is uploaded while a graph is captured; upload it before each launch instead");
  }
  TESSERA_RETURN_IF_ERROR(copied_.Synchronize("the upload of the decode step before"));
  auto* const rows = reinterpret_cast<cuda::DecodeRows*>(staging_.data());
  auto* const visible = reinterpret_cast<cuda::VisibleRows*>(staging_.data() + visible_offset_);
  auto* const pages = reinterpret_cast<int32_t*>(staging_.data() + pages_offset_);
  std::fill_n(rows, limits_.sequences, cuda::DecodeRows{});
  int32_t next_page = 0, next_visible = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const DecodeSequence& sequence = sequences[i];
    rows[i] = {static_cast<int32_t>(sequence.first_query_row), static_cast<int32_t>(sequence.visible.size()), next_page,
               next_visible};
    for (const Range& range : sequence.visible) {
      visible[next_visible++] = range.empty() ? cuda::VisibleRows{} : cuda::VisibleRows{range.begin, range.end};
    }
    std::copy(sequence.pages.begin(), sequence.pages.end(), pages + next_page);
    next_page += static_cast<int32_t>(sequence.pages.size());
  }
  const int64_t bytes = pages_offset_ + next_page * static_cast<int64_t>(sizeof(int32_t));
  TESSERA_RETURN_IF_ERROR(CopyAsync(tables_.data(), staging_.data(), bytes, stream));
  TESSERA_RETURN_IF_ERROR(copied_.Record(stream));
  TESSERA_RETURN_IF_ERROR(copied_.MakeWait(own_));  // the tables may be freed before anything uses them
  rows_ = totals.rows;
  return absl::OkStatus();
}

}  // namespace tessera
