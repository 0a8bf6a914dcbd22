#pragma once

#include <string_view>

#include "kernels/cuda/device/steps.h"
#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

namespace tessera::cuda {

// InvalidArgument for fp64. `what` names the operation.
inline StatusOr<ElementType> ElementTypeOf(DType dtype, std::string_view what) {
  switch (dtype) {
    case DType::kFloat32:
      return ElementType::kFloat32;
    case DType::kBFloat16:
      return ElementType::kBFloat16;
    case DType::kFloat16:
      return ElementType::kFloat16;
    case DType::kFloat64:
      break;
  }
  return absl::InvalidArgumentError(absl::StrCat("cuda ", std::string(what), ": the dtype is ",
                                                 std::string(Name(dtype)), "; it must be fp32, bf16 or fp16"));
}

}  // namespace tessera::cuda
