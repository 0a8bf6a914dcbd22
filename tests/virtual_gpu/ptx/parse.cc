// The module level of PTX: directives, variables, function heads.
#include <cctype>
#include <cstdlib>

#include "tests/virtual_gpu/ptx/syntax.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

bool BeginsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Comments and line-ended directives become blanks, so that only ';' and braces end things; line ends stay.
std::string Clean(std::string_view ptx) {
  std::string text(ptx);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      const size_t end = text.find('"', i + 1);
      if (end != std::string::npos) i = end;
    } else if (BeginsWith(std::string_view(text).substr(i), "//")) {
      while (i < text.size() && text[i] != '\n') text[i++] = ' ';
    } else if (BeginsWith(std::string_view(text).substr(i), "/*")) {
      const size_t end = text.find("*/", i);
      for (; i < text.size() && i < end + 2; ++i) {
        if (text[i] != '\n') text[i] = ' ';
      }
      --i;
    }
  }
  constexpr std::string_view kWholeLine[] = {".version", ".target", ".address_size", ".loc", ".file"};
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string_view line = Trim(std::string_view(text).substr(begin, end - begin));
    for (std::string_view directive : kWholeLine) {
      if (BeginsWith(line, directive) && line.size() > directive.size() && std::isspace(line[directive.size()])) {
        std::fill(text.begin() + begin, text.begin() + end, ' ');
        break;
      }
    }
    begin = end + 1;
  }
  return text;
}

int LinesIn(std::string_view text) {
  int lines = 0;
  for (char c : text) lines += c == '\n';
  return lines;
}

// The position after the brace that closes the one at `open`.
size_t Closing(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  return std::string_view::npos;
}

bool ParseParameters(std::string_view text, std::vector<Variable>* parameters, std::string* error) {
  uint64_t offset = 0;
  for (std::string_view piece : Split(text, ',')) {
    Variable parameter;
    if (!ParseVariable(piece, &parameter, error)) return false;
    offset = (offset + parameter.align - 1) / parameter.align * parameter.align;
    parameter.offset = offset;
    offset += parameter.bytes;
    parameters->push_back(std::move(parameter));
  }
  return true;
}

Dim3 ParseDim(std::string_view text) {
  Dim3 dim;
  uint32_t* const parts[] = {&dim.x, &dim.y, &dim.z};
  const auto pieces = Split(text, ',');
  for (size_t i = 0; i < pieces.size() && i < 3; ++i)
    *parts[i] = std::strtoul(std::string(pieces[i]).c_str(), nullptr, 0);
  return dim;
}

// ".visible .entry name ( ... ) .maxntid 128, 1, 1" or ".func (.param .b32 r) name ( ... ) .noinline".
bool ParseHead(std::string_view head, Function* function, std::string* error) {
  const auto fail = [&](const char* what) { return *error = std::string(what) + ": " + std::string(head), false; };
  function->is_entry = head.find(".entry") != std::string_view::npos;
  std::string_view rest = Trim(head.substr(head.find(function->is_entry ? ".entry" : ".func")));
  rest = Trim(rest.substr(rest.find_first_of(" \t\n(")));
  if (BeginsWith(rest, "(")) {
    const size_t close = rest.find(')');
    if (close == std::string_view::npos) return fail("result list without end");
    if (!ParseParameters(rest.substr(1, close - 1), &function->results, error)) return false;
    rest = Trim(rest.substr(close + 1));
  }
  const size_t name_end = std::min(rest.find_first_of(" \t\n(."), rest.size());
  function->name = rest.substr(0, name_end);
  if (!IsIdentifier(function->name)) return fail("no function name");
  rest = Trim(rest.substr(name_end));
  if (BeginsWith(rest, "(")) {
    const size_t close = rest.find(')');
    if (close == std::string_view::npos) return fail("parameter list without end");
    if (!ParseParameters(rest.substr(1, close - 1), &function->parameters, error)) return false;
    rest = Trim(rest.substr(close + 1));
  }
  while (!rest.empty()) {
    const size_t next = rest.find('.', 1);
    const std::string_view directive = Trim(rest.substr(0, next));
    const size_t space = std::min(directive.find_first_of(" \t"), directive.size());
    const std::string_view name = directive.substr(0, space);
    if (name == ".maxntid" || name == ".reqntid") function->max_threads = ParseDim(directive.substr(space)).Count();
    if (name == ".reqnctapercluster") function->required_cluster = ParseDim(directive.substr(space));
    rest = next == std::string_view::npos ? std::string_view{} : rest.substr(next);
  }
  return true;
}

}  // namespace

bool ParseSyntax(std::string_view ptx, Syntax* syntax, std::string* error) {
  const std::string clean = Clean(ptx);
  const std::string_view text = clean;
  const auto fail = [&](size_t position, const std::string& what) {
    *error = "line " + std::to_string(1 + LinesIn(text.substr(0, position))) + ": " + what;
    return false;
  };
  for (size_t begin = text.find_first_not_of(" \t\r\n"); begin != std::string_view::npos;
       begin = text.find_first_not_of(" \t\r\n", begin)) {
    const size_t end = text.find_first_of(";{", begin);
    if (end == std::string_view::npos)
      return fail(begin, "text without end: " + std::string(Trim(text.substr(begin, 80))));
    std::string_view item = Trim(text.substr(begin, end - begin));
    std::string what;
    if (BeginsWith(item, ".section")) {
      begin = Closing(text, end);
      continue;
    }
    const bool function = item.find(".entry") != std::string_view::npos || BeginsWith(item, ".func") ||
                          item.find(" .func") != std::string_view::npos;
    if (function) {
      Function parsed;
      if (!ParseHead(item, &parsed, &what)) return fail(begin, what);
      size_t after = end + 1;
      if (text[end] == '{') {
        after = Closing(text, end);
        if (after == std::string_view::npos) return fail(end, "body of " + parsed.name + " has no end");
        const int line = 1 + LinesIn(text.substr(0, end));
        if (!ParseBody(text.substr(end + 1, after - end - 2), line, &parsed, error)) return false;
      } else {
        parsed.is_declaration = true;
      }
      syntax->functions.push_back(std::move(parsed));
      begin = after;
      continue;
    }
    size_t after = text.find(';', end);
    if (after == std::string_view::npos) return fail(begin, "text without end: " + std::string(item.substr(0, 80)));
    item = Trim(text.substr(begin, after - begin));
    if (!BeginsWith(item, ".pragma") && !BeginsWith(item, ".alias")) {
      Variable variable;
      if (!ParseVariable(item, &variable, &what)) return fail(begin, what);
      syntax->variables.push_back(std::move(variable));
    }
    begin = after + 1;
  }
  return true;
}

}  // namespace tessera::vgpu
