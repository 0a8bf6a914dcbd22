// Standard normals from a counter-based generator (Philox4x32-10, Salmon et al. 2011): a value depends only on its seed
// and its global coordinates, so any rank makes exactly its own rows and any rank count sees the same tensors.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/base/geometry.h"
#include "runtime/base/tensor.h"

namespace tessera {

// Fills `rows` [rows, heads, width] with the values of tensor `tensor` (0 to 255) at the global tokens of `segments`,
// whose counts add up to rows.rows. Width below 2^26.
void FillNormal(uint64_t seed, uint8_t tensor, std::span<const Segment> segments, const TensorView& rows);

}  // namespace tessera
