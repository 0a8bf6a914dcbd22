// The boundary between C++ and C: statuses become result codes and a text, exceptions end here, structs are checked
// before anything in them is believed.
#pragma once

#include <cstddef>
#include <exception>
#include <new>
#include <utility>

#include "runtime/base/status.h"
#include "runtime/capi/tessera.h"

namespace tessera::capi {

// Keeps the text for tessera_last_error() of this thread.
tessera_result Fail(const Status& status) noexcept;
tessera_result FailWithoutMemory() noexcept;
tessera_result FailOnException(const char* what) noexcept;

// Runs the body of a C function. The standard library throws when memory or threads run out.
template <typename Body>
tessera_result Guard(Body&& body) noexcept {
  try {
    const Status status = std::forward<Body>(body)();
    return status.ok() ? TESSERA_OK : Fail(status);
  } catch (const std::bad_alloc&) {
    return FailWithoutMemory();
  } catch (const std::exception& error) {
    return FailOnException(error.what());
  } catch (...) {
    return FailOnException("unknown");
  }
}

Status CheckNotNull(const char* name, const void* pointer);
// `known` bytes are all that this release reads; a struct of a newer header may be longer, when the rest is zero.
Status CheckStructHeader(const char* name, const void* data, size_t struct_size, size_t known, int api_version,
                         bool reads);

// A struct that is given by the caller to be read, or (`reads` false) to be filled.
template <typename Struct>
Status CheckStruct(const char* name, const Struct* data, bool reads = true) {
  TESSERA_RETURN_IF_ERROR(CheckNotNull(name, data));
  // api_version may lie beyond the end of a struct that is too short.
  const bool has_version = data->struct_size >= offsetof(Struct, api_version) + sizeof data->api_version;
  return CheckStructHeader(name, data, data->struct_size, sizeof(Struct), has_version ? data->api_version : 0, reads);
}

}  // namespace tessera::capi
