#include "collectives/mpi/error.h"

#include <mpi.h>

#include <string>

namespace tessera::internal {

Status MpiStatus(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  int error_class = MPI_ERR_UNKNOWN;
  MPI_Error_string(code, text, &length);  // a failure of these two leaves the defaults above
  MPI_Error_class(code, &error_class);
  const std::string message = absl::StrCat(std::string(call), ": ", text);
  return error_class == MPI_ERR_TRUNCATE ? absl::InvalidArgumentError(message) : absl::InternalError(message);
}

}  // namespace tessera::internal
