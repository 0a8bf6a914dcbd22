// Error values: every fallible function in Tessera returns absl::Status or absl::StatusOr.
//
// Abseil 20220623 ships no propagation macros, so the two below exist. Nothing in the library throws, exits or aborts.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tessera {
using absl::Status;
using absl::StatusOr;
}  // namespace tessera

// Returns the status from the enclosing function when `expr` is not OK.
#define TESSERA_RETURN_IF_ERROR(expr)                          \
  do {                                                         \
    if (::absl::Status tessera_status_ = (expr); !tessera_status_.ok()) return tessera_status_; \
  } while (false)

// Evaluates a StatusOr, returns its status on error, otherwise assigns the value: TESSERA_ASSIGN_OR_RETURN(auto x, F());
#define TESSERA_ASSIGN_OR_RETURN(lhs, expr) TESSERA_ASSIGN_OR_RETURN_AT_(lhs, expr, __LINE__)
#define TESSERA_ASSIGN_OR_RETURN_AT_(lhs, expr, line) TESSERA_ASSIGN_OR_RETURN_IMPL_(lhs, expr, line)
#define TESSERA_ASSIGN_OR_RETURN_IMPL_(lhs, expr, line)         \
  auto tessera_or_##line = (expr);                              \
  if (!tessera_or_##line.ok()) return tessera_or_##line.status(); \
  lhs = std::move(tessera_or_##line).value()
