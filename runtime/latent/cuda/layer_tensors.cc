#include "runtime/latent/cuda/layer_tensors.h"

namespace tessera {

int64_t LatentTensors::Place(const MlaShape& shape, const MlaDecodeSetup& setup, DType compute, int64_t rows,
                             int64_t packed_bytes, std::byte* memory, LatentTensors& tensors) {
  constexpr int64_t kAlignment = 256;  // of vector loads and of cuBLAS, with room
  int64_t bytes = 0;
  const auto take = [&](int64_t size) {
    std::byte* const place = memory == nullptr ? nullptr : memory + bytes;
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  };
  const auto tensor = [&](int heads, int width, DType dtype = DType::kFloat32) {
    TensorView view = TensorView::Dense(nullptr, dtype, rows, heads, width);
    view.space = MemorySpace::kDevice;
    view.data = take(view.bytes());
    return view;
  };
  const auto rounded = [&](int heads, int width) {
    if (compute != DType::kFloat32) return tensor(heads, width, compute);
    return TensorView::Dense(nullptr, compute, rows, heads, width);
  };
  const MlaShare& share = setup.share;
  const int columns = static_cast<int>(share.latent_columns.size());
  const DType cache = setup.spec.dtype;
  const int absorbed_heads = share.absorbed_heads.size();
  const bool sliced = setup.spec.groups > 1;
  LatentTensors& t = tensors;
  t.hidden = rounded(1, shape.hidden);
  t.kv = tensor(1, shape.cache_width());
  t.cache_rows = tensor(1, columns + shape.rope, cache);
  t.low = tensor(1, shape.query_rank);
  t.low_rounded = rounded(1, shape.query_rank);
  t.query = tensor(share.query_heads.size(), shape.qk_width());
  t.all_query = sliced ? tensor(absorbed_heads, shape.qk_width()) : t.query;
  t.nope = rounded(absorbed_heads, shape.nope);
  t.latent_query = tensor(absorbed_heads, columns);
  t.absorbed = tensor(absorbed_heads, columns + shape.rope, cache);
  t.attended = tensor(setup.attended_heads.size(), columns);
  t.lse = tensor(setup.attended_heads.size(), 1);
  t.latent_rounded = rounded(share.value_heads.size(), columns);
  t.value = tensor(share.value_heads.size(), shape.value);
  t.own_value = sliced ? tensor(share.output_heads.size(), shape.value) : t.value;
  t.value_rounded = rounded(share.output_heads.size(), shape.value);
  t.summand = tensor(1, shape.hidden);
  t.packed = take(packed_bytes);
  return bytes;
}

}  // namespace tessera
