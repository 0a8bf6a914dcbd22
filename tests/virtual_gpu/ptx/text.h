// Small helpers for messages and for reading text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::vgpu {

std::string Hex(uint64_t value);
std::string_view Trim(std::string_view text);
// The pieces between separators, each trimmed; "" gives no pieces.
std::vector<std::string_view> Split(std::string_view text, char separator);
bool IsIdentifier(std::string_view text);  // of PTX: letters, digits, _ $ %, not beginning with a digit

}  // namespace tessera::vgpu
