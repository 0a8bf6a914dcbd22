// Whether two tensors share memory, element by element: interleaved views of one packed buffer do not. Internal to the
// engine.
#pragma once

#include "runtime/base/tensor.h"

namespace tessera {

// Exact for any row and head strides of at least 0. Costs one comparison when the address ranges are apart; otherwise
// about heads * other heads * log(stride) operations, whatever the number of rows.
bool Overlap(const ConstTensorView& one, const ConstTensorView& other);

}  // namespace tessera
