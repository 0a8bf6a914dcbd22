#include "runtime/capi/boundary.h"

#include <algorithm>
#include <string>

namespace tessera::capi {
namespace {

thread_local std::string error_text;
thread_local const char* last_error = "";

constexpr char kNoMemory[] = "out of memory";

Status CheckVersion(const std::string& who, int version) {
  if (version == TESSERA_API_VERSION) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(who, " is ", version, "; the loaded library, release ",
                                                    TESSERA_RELEASE, ", serves ", TESSERA_API_VERSION,
                                                    ": tessera.h and libtessera are of different releases"));
}

}  // namespace

tessera_result Fail(const Status& status) noexcept {
  try {
    error_text = std::string(status.message());
    last_error = error_text.c_str();
  } catch (const std::bad_alloc&) {
    last_error = kNoMemory;
  }
  // The numbers of tessera_result are those of absl::StatusCode.
  return static_cast<tessera_result>(status.code());
}

tessera_result FailWithoutMemory() noexcept {
  last_error = kNoMemory;
  return TESSERA_RESOURCE_EXHAUSTED;
}

tessera_result FailOnException(const char* what) noexcept {
  try {
    return Fail(absl::InternalError(absl::StrCat("an exception reached the C boundary: ", what)));
  } catch (const std::bad_alloc&) {
    return FailWithoutMemory();
  }
}

Status CheckNotNull(const char* name, const void* pointer) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is NULL"));
}

Status CheckStructHeader(const char* name, const void* data, size_t struct_size, size_t known, int api_version,
                         bool reads) {
  if (struct_size < known) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": struct_size is ", struct_size, "; it must be at least ",
                                                   known, ", as TESSERA_INIT sets it"));
  }
  TESSERA_RETURN_IF_ERROR(CheckVersion(absl::StrCat(name, ": api_version"), api_version));
  const char* const bytes = static_cast<const char*>(data);
  if (reads && std::any_of(bytes + known, bytes + struct_size, [](char byte) { return byte != 0; })) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": a member beyond byte ", known, " is set, which this release does not know"));
  }
  return absl::OkStatus();
}

}  // namespace tessera::capi

using tessera::capi::Guard;

int tessera_api_version(void) {
  return TESSERA_API_VERSION;
}

const char* tessera_version(void) {
  return TESSERA_RELEASE;
}

tessera_result tessera_check_version(int header_version) {
  return Guard([&] { return tessera::capi::CheckVersion("header_version", header_version); });
}

const char* tessera_last_error(void) {
  return tessera::capi::last_error;
}

const char* tessera_result_name(tessera_result result) {
  static constexpr const char* kNames[] = {"TESSERA_OK",
                                           "TESSERA_CANCELLED",
                                           "TESSERA_UNKNOWN",
                                           "TESSERA_INVALID_ARGUMENT",
                                           "TESSERA_DEADLINE_EXCEEDED",
                                           "TESSERA_NOT_FOUND",
                                           "TESSERA_ALREADY_EXISTS",
                                           "TESSERA_PERMISSION_DENIED",
                                           "TESSERA_RESOURCE_EXHAUSTED",
                                           "TESSERA_FAILED_PRECONDITION",
                                           "TESSERA_ABORTED",
                                           "TESSERA_OUT_OF_RANGE",
                                           "TESSERA_UNIMPLEMENTED",
                                           "TESSERA_INTERNAL",
                                           "TESSERA_UNAVAILABLE",
                                           "TESSERA_DATA_LOSS",
                                           "TESSERA_UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(result);
  return index < std::size(kNames) ? kNames[index] : "unknown result";
}
