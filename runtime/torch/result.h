// The C interface's result codes as C++ exceptions, which Python sees as ValueError and RuntimeError.
#pragma once

#include <tessera.h>

#include <stdexcept>
#include <string>

namespace tessera_torch {

// A wrong argument is a ValueError (std::invalid_argument), anything else a RuntimeError that begins with the code.
inline void Check(tessera_result result) {
  if (result == TESSERA_OK) return;
  const std::string text = tessera_last_error();
  if (result == TESSERA_INVALID_ARGUMENT) throw std::invalid_argument(text);
  throw std::runtime_error(std::string(tessera_result_name(result)) + ": " + text);
}

}  // namespace tessera_torch
