// Sums and the like of NCCL's data types, element by element on the host.
#pragma once

#include <nccl.h>

#include <cstddef>

namespace tessera::vgpu {

size_t BytesOf(ncclDataType_t type);  // 0 for a type that is not modelled
bool IsModelled(ncclRedOp_t op);

// accumulator[i] = accumulator[i] op summand[i]; both of `count` elements.
void Accumulate(ncclDataType_t type, ncclRedOp_t op, size_t count, std::byte* accumulator, const std::byte* summand);
// The last step of ncclAvg.
void Divide(ncclDataType_t type, size_t count, std::byte* values, int divisor);

}  // namespace tessera::vgpu
