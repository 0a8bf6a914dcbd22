// Variable declarations of PTX: ".global .align 4 .b8 table[24] = {1, 2};".
#include <cstdlib>
#include <cstring>

#include "tests/virtual_gpu/ptx/syntax.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

// Bytes of ".u32", 0 when it is no type.
uint64_t TypeBytes(std::string_view type) {
  if (type.size() < 3 || std::string_view("busf").find(type[1]) == std::string_view::npos) return 0;
  const int bits = std::atoi(std::string(type.substr(2)).c_str());
  return bits == 8 || bits == 16 || bits == 32 || bits == 64 || bits == 128 ? bits / 8 : 0;
}

uint64_t Number(std::string_view text) {
  return std::strtoull(std::string(Trim(text)).c_str(), nullptr, 0);
}

bool ParseInitial(std::string_view text, uint64_t element_bytes, Variable* variable, std::string* error) {
  std::string flat;
  for (char c : text) flat += c == '{' || c == '}' ? ' ' : c;
  for (std::string_view piece : Split(flat, ',')) {
    uint64_t bits = 0;
    if (piece.empty()) continue;
    if (piece.substr(0, 2) == "0f" || piece.substr(0, 2) == "0F" || piece.substr(0, 2) == "0d" ||
        piece.substr(0, 2) == "0D") {
      bits = std::strtoull(std::string(piece.substr(2)).c_str(), nullptr, 16);
    } else if (std::isdigit(static_cast<unsigned char>(piece[0])) || piece[0] == '-') {
      bits = static_cast<uint64_t>(piece[0] == '-' ? std::strtoll(std::string(piece).c_str(), nullptr, 0)
                                                   : static_cast<long long>(Number(piece)));
    } else {
      if (piece.substr(0, 8) == "generic(") piece = piece.substr(8, piece.size() - 9);
      if (!IsIdentifier(piece) || element_bytes != 8) return *error = "initial value " + std::string(piece), false;
      variable->initial_addresses.emplace_back(variable->initial.size(), piece);
    }
    const size_t at = variable->initial.size();
    variable->initial.resize(at + element_bytes);
    std::memcpy(&variable->initial[at], &bits, element_bytes);
  }
  return true;
}

}  // namespace

bool ParseVariable(std::string_view text, Variable* variable, std::string* error) {
  const auto fail = [&](const std::string& what) {
    return *error = what + " in: " + std::string(text.substr(0, 120)), false;
  };
  const size_t equals = text.find('=');
  std::string head(text.substr(0, equals));
  for (size_t at; (at = head.find(" [")) != std::string::npos;) head.erase(at, 1);
  uint64_t element = 0, count = 1;
  bool array_without_size = false;
  std::string word;
  std::string_view rest = head;
  bool next_is_align = false;
  while (!(rest = Trim(rest)).empty()) {
    const size_t end = std::min(rest.find_first_of(" \t\n\r"), rest.size());
    const std::string_view token = rest.substr(0, end);
    rest = rest.substr(end);
    if (next_is_align) {
      variable->align = Number(token);
      next_is_align = false;
    } else if (token[0] != '.') {
      const size_t bracket = token.find('[');
      variable->name = token.substr(0, bracket);
      for (size_t at = bracket; at != std::string_view::npos && at < token.size(); at = token.find('[', at + 1)) {
        const uint64_t size = Number(token.substr(at + 1));
        array_without_size |= size == 0;
        count *= size;
      }
    } else if (token == ".align") {
      next_is_align = true;
    } else if (token == ".global") {
      variable->space = Variable::kGlobal;
    } else if (token == ".const") {
      variable->space = Variable::kConst;
    } else if (token == ".shared") {
      variable->space = Variable::kShared;
    } else if (token == ".local") {
      variable->space = Variable::kLocal;
    } else if (token == ".param") {
      variable->space = Variable::kParam;
    } else if (token == ".extern") {
      variable->is_extern = true;
    } else if (token == ".ptr") {
      variable->align = 0;  // ".param .u64 .ptr .global .align 16 p": what follows describes the pointee
    } else if (const uint64_t bytes = TypeBytes(token)) {
      element = bytes;
    } else if (token != ".visible" && token != ".weak" && token != ".common" && token != ".managed") {
      return fail("unknown word " + std::string(token));
    }
  }
  if (head.find(".ptr") != std::string::npos) {
    variable->space = Variable::kParam;
    variable->align = 8;
  }
  if (variable->name.empty() || element == 0) return fail("no name or type");
  variable->bytes = array_without_size ? 0 : element * count;
  if (variable->align < element) variable->align = element;
  if (equals == std::string_view::npos) return true;
  std::string what;
  if (!ParseInitial(text.substr(equals + 1), element, variable, &what)) return fail(what);
  if (array_without_size) variable->bytes = variable->initial.size();
  return true;
}

}  // namespace tessera::vgpu
