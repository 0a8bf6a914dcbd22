#include "launcher/host_tensor.h"

#include <string>

namespace tessera::launcher {

StatusOr<HostTensor> HostTensor::Allocate(DType dtype, int64_t rows, int heads, int width) {
  HostTensor tensor;
  tensor.view_ = TensorView::Dense(nullptr, dtype, rows, heads, width);
  const int64_t bytes = tensor.view_.bytes();
  tensor.memory_.reset(std::malloc(bytes > 0 ? bytes : 1));
  if (tensor.memory_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(Name(dtype)),
                                                     " [", rows, ", ", heads, ", ", width, "]"));
  }
  tensor.view_.data = tensor.memory_.get();
  return tensor;
}

}  // namespace tessera::launcher
