#include "runtime/latent/cuda/slice_exchange.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/steps.h"

namespace tessera {
namespace {

constexpr int64_t kFloat = sizeof(float);

// Between [rows, heads, width] and the dense [rows, part, width].
Status CopyHeads(const ConstTensorView& whole, HeadRange part, std::byte* packed, bool pack, CUstream_st* stream) {
  const int64_t pitch = whole.row_stride * kFloat, row_bytes = int64_t{part.size()} * whole.width * kFloat;
  if (row_bytes == 0) return absl::OkStatus();
  auto* const at = static_cast<std::byte*>(const_cast<void*>(whole.At(0, part.begin)));
  return pack ? cuda::CopyRows(packed, row_bytes, at, pitch, row_bytes, whole.rows, stream)
              : cuda::CopyRows(at, pitch, packed, row_bytes, row_bytes, whole.rows, stream);
}

}  // namespace

int64_t CudaSliceExchange::OwnHeads() const {
  const auto self = std::ranges::find(place_.ranks, data_.rank()) - place_.ranks.begin();
  return place_.heads[self].size();
}

int64_t CudaSliceExchange::PackedBytes(int64_t rows, int query_width, int value_width) const {
  if (alone()) return 0;
  const int64_t others = total_heads_ - OwnHeads();
  const int64_t received_sums = OwnHeads() * (static_cast<int64_t>(place_.ranks.size()) - 1);
  return rows * kFloat * std::max(others * query_width, (others + received_sums) * value_width);
}

Status CudaSliceExchange::Gather(const ConstTensorView& own, std::byte* packed, const TensorView& all,
                                 CUstream_st* stream) const {
  if (alone()) return absl::OkStatus();
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  std::vector<std::byte*> parts;  // per slice
  for (size_t i = 0; i < place_.ranks.size(); ++i) {
    const int64_t bytes = own.rows * place_.heads[i].size() * own.width * kFloat;
    if (place_.ranks[i] == data_.rank()) {
      parts.push_back(static_cast<std::byte*>(const_cast<void*>(own.data)));
      continue;
    }
    parts.push_back(packed);
    if (own.bytes() > 0) sends.push_back({place_.ranks[i], static_cast<const std::byte*>(own.data), own.bytes()});
    if (bytes > 0) receives.push_back({place_.ranks[i], packed, bytes});
    packed += bytes;
  }
  TESSERA_RETURN_IF_ERROR(data_.Exchange(sends, receives, stream));
  for (size_t i = 0; i < parts.size(); ++i) {
    TESSERA_RETURN_IF_ERROR(CopyHeads(all, place_.heads[i], parts[i], /*pack=*/false, stream));
  }
  return absl::OkStatus();
}

Status CudaSliceExchange::SumOwn(const ConstTensorView& value, std::byte* packed, const TensorView& own,
                                 CUstream_st* stream) const {
  if (alone()) return absl::OkStatus();
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  std::vector<ConstTensorView> summands;  // per slice, of the own heads
  for (size_t i = 0; i < place_.ranks.size(); ++i) {
    const int64_t bytes = value.rows * place_.heads[i].size() * value.width * kFloat;
    if (place_.ranks[i] == data_.rank()) {
      ConstTensorView mine = value;
      mine.data = value.At(0, place_.heads[i].begin);
      mine.heads = own.heads;
      summands.push_back(mine);
      continue;
    }
    if (bytes > 0) {
      TESSERA_RETURN_IF_ERROR(CopyHeads(value, place_.heads[i], packed, /*pack=*/true, stream));
      sends.push_back({place_.ranks[i], packed, bytes});
      packed += bytes;
    }
    if (own.bytes() > 0) receives.push_back({place_.ranks[i], packed, own.bytes()});
    summands.push_back(ConstTensorView::Dense(packed, own.dtype, own.rows, own.heads, own.width));
    packed += own.bytes();
  }
  TESSERA_RETURN_IF_ERROR(data_.Exchange(sends, receives, stream));
  TESSERA_RETURN_IF_ERROR(cuda::ZeroRows(own, {0, own.rows}, stream));
  for (const ConstTensorView& summand : summands) {
    TESSERA_RETURN_IF_ERROR(cuda::AddRows(summand, 0, own, 0, 0, own.rows, stream));
  }
  return absl::OkStatus();
}

}  // namespace tessera
