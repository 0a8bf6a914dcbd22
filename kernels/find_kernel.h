// The first of a list of kernels that serves what is asked of it, or why none does.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

namespace tessera {

// `name`: only the kernel called so; "" or "auto" = any. `what` and `widths` are for the error: "attention", "head
// widths". NotFound lists every kernel's reason.
template <typename Kernel, typename Traits>
StatusOr<const Kernel*> FindKernel(std::span<const Kernel* const> kernels, const Traits& traits, std::string_view name,
                                   const char* what, const char* widths) {
  const bool any = name.empty() || name == "auto";
  std::string reasons;
  for (const Kernel* kernel : kernels) {
    if (!any && kernel->name() != name) {
      absl::StrAppend(&reasons, "\n  ", std::string(kernel->name()), ": not the one asked for");
      continue;
    }
    const std::string reason = kernel->WhyNot(traits);
    if (reason.empty()) return kernel;
    absl::StrAppend(&reasons, "\n  ", std::string(kernel->name()), ": ", reason);
  }
  const std::string called = any ? "" : " called \"" + std::string(name) + "\"";
  return absl::NotFoundError(absl::StrCat("no ", what, " kernel", called, " serves ", std::string(Name(traits.dtype)),
                                          " with ", widths, " ", traits.qk_width, " and ", traits.v_width, ":",
                                          reasons));
}

}  // namespace tessera
