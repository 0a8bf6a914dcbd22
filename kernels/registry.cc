#include <string>

#include "kernels/attention.h"
#include "kernels/cpu/kernel.h"
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
  const bool any = name.empty() || name == "auto";
  std::string reasons;
  for (const AttentionKernel* kernel : AttentionKernels()) {
    if (!any && kernel->name() != name) {
      absl::StrAppend(&reasons, "\n  ", std::string(kernel->name()), ": not the one asked for");
      continue;
    }
    const std::string reason = kernel->WhyNot(traits);
    if (reason.empty()) return kernel;
    absl::StrAppend(&reasons, "\n  ", std::string(kernel->name()), ": ", reason);
  }
  return absl::NotFoundError(absl::StrCat("no attention kernel", any ? "" : " called \"",
                                          any ? std::string() : std::string(name), any ? "" : "\"", " serves ",
                                          std::string(Name(traits.dtype)), " with head widths ", traits.qk_width,
                                          " and ", traits.v_width, ":", reasons));
}

}  // namespace tessera
