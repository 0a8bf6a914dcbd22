// MPI error codes as Status. Needs no <mpi.h>: an error code is an int in every MPI.
#pragma once

#include <string_view>

#include "runtime/base/status.h"

namespace tessera::internal {

// OK for MPI_SUCCESS, otherwise an error with the name of the call and MPI's own text.
Status MpiStatus(int code, std::string_view call);

}  // namespace tessera::internal

#define TESSERA_MPI_RETURN_IF_ERROR(call, ...) \
  TESSERA_RETURN_IF_ERROR(::tessera::internal::MpiStatus(call(__VA_ARGS__), #call))
