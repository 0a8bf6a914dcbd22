#include "kernels/attention.h"
#include "kernels/cpu/kernel.h"
#include "kernels/find_kernel.h"
#include "kernels/reference/reference.h"

namespace tessera {

std::span<const AttentionKernel* const> AttentionKernels() {
  static const std::vector<const AttentionKernel*> kernels = [] {
    std::vector<const AttentionKernel*> all = cpu::Kernels();
    all.push_back(reference::Kernel());
    return all;
  }();
  return kernels;
}

StatusOr<const AttentionKernel*> FindAttentionKernel(const AttentionTraits& traits, std::string_view name) {
  return FindKernel(AttentionKernels(), traits, name, "attention", "head widths");
}

}  // namespace tessera
