// Function bodies of PTX: declarations, labels, instructions with their operands; names are resolved by scope.
#include <bit>
#include <cctype>
#include <cstdlib>

#include "tests/virtual_gpu/ptx/syntax.h"
#include "tests/virtual_gpu/ptx/text.h"

namespace tessera::vgpu {
namespace {

struct Scope {
  std::map<std::string, int, std::less<>> registers;
  std::map<std::string, std::string, std::less<>> variables;  // to the unique name
  std::map<std::string, int, std::less<>> labels;             // to the statement
  int parent = -1;
};

class BodyParser {
 public:
  explicit BodyParser(Function* function) : function_(*function) { scopes_.emplace_back(); }

  bool Parse(std::string_view body, int line, std::string* error);

 private:
  struct Reference {  // to a label, resolved at the end because most are forward
    int statement;    // -1: a branch table's entry
    std::string label, table;
    int scope;
  };

  bool Item(std::string_view text);
  bool Declaration(std::string_view text);
  bool Registers(std::string_view text);
  bool Instruction(std::string_view text);
  bool ParseOperand(std::string_view text, Operand* operand);
  bool Address(std::string_view inside, Operand* operand);
  bool List(std::string_view text, char separator, std::vector<Operand>* operands);
  void Label(std::string_view name);
  bool Resolve();
  int FindLabel(int scope, std::string_view name) const;
  bool Fail(const std::string& what) {
    *error_ = "line " + std::to_string(line_) + ": " + what;
    return false;
  }
  template <class Member, class Name>
  const typename Member::mapped_type* Find(Member Scope::*member, const Name& name) const {
    for (int at = scope_; at >= 0; at = scopes_[at].parent) {
      const auto found = (scopes_[at].*member).find(name);
      if (found != (scopes_[at].*member).end()) return &found->second;
    }
    return nullptr;
  }

  Function& function_;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  int line_ = 0;
  std::string pending_table_;  // the label before .branchtargets
  std::vector<Reference> references_;
  std::string* error_ = nullptr;
};

bool BodyParser::Parse(std::string_view body, int line, std::string* error) {
  error_ = error;
  std::string item;
  int here = line;
  int item_line = line;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (c == '\n') ++here;
    const bool nothing_yet = Trim(item).empty();
    if (nothing_yet) item_line = here;
    if (nothing_yet && c == '{') {
      Scope inner;
      inner.parent = scope_;
      scope_ = static_cast<int>(scopes_.size());
      scopes_.push_back(std::move(inner));
    } else if (nothing_yet && c == '}') {
      scope_ = scopes_[scope_].parent;
    } else if (c == ':' && (i + 1 == body.size() || body[i + 1] != ':') && IsIdentifier(Trim(item))) {
      line_ = item_line;
      Label(Trim(item));
      item.clear();
      continue;
    } else if (c == ';') {
      line_ = item_line;
      if (!nothing_yet && !Item(Trim(item))) return false;
      item.clear();
      continue;
    } else {
      item += c;
      continue;
    }
    item.clear();
  }
  line_ = item_line;
  if (!Trim(item).empty()) return Fail("text without ';': " + std::string(Trim(item)));
  return Resolve();
}

void BodyParser::Label(std::string_view name) {
  scopes_[scope_].labels.emplace(std::string(name), static_cast<int>(function_.statements.size()));
  pending_table_ = name;
}

bool BodyParser::Item(std::string_view text) {
  if (text[0] != '.') return Instruction(text);
  if (text.substr(0, 7) == ".pragma" || text.substr(0, 14) == ".callprototype") return true;
  if (text.substr(0, 4) == ".reg") return Registers(text.substr(4));
  constexpr std::string_view kTargets = ".branchtargets";
  if (text.substr(0, kTargets.size()) == kTargets) {
    function_.branch_tables[pending_table_];
    for (std::string_view label : Split(text.substr(kTargets.size()), ',')) {
      references_.push_back({-1, std::string(label), pending_table_, scope_});
    }
    return true;
  }
  return Declaration(text);
}

bool BodyParser::Declaration(std::string_view text) {
  Variable variable;
  std::string what;
  if (!ParseVariable(text, &variable, &what)) return Fail(what);
  std::string unique =
      scope_ == 0 ? variable.name : variable.name + "#" + function_.name + "#" + std::to_string(scope_);
  scopes_[scope_].variables[variable.name] = unique;
  variable.name = std::move(unique);
  function_.variables.push_back(std::move(variable));
  return true;
}

// " .b32 %r<20>, x": numbered or single names of one type.
bool BodyParser::Registers(std::string_view text) {
  text = Trim(text);
  const size_t space = text.find_first_of(" \t");
  if (space == std::string_view::npos) return Fail("registers without names: " + std::string(text));
  const std::string_view type = text.substr(0, space);
  Register prototype;
  if (type == ".pred") {
    prototype.bits = 1;
  } else {
    const size_t digits = type.find_first_of("0123456789");
    if (digits == std::string_view::npos) return Fail("unknown register type " + std::string(type));
    const int bits = std::atoi(std::string(type.substr(digits)).c_str());
    prototype.bits = type == ".f16x2" || type == ".bf16x2" ? 32 : bits < 16 ? 16 : bits;
  }
  const auto add = [&](std::string name) {
    prototype.name = name;
    scopes_[scope_].registers[std::move(name)] = static_cast<int>(function_.registers.size());
    function_.registers.push_back(prototype);
  };
  for (std::string_view name : Split(text.substr(space), ',')) {
    const size_t angle = name.find('<');
    if (angle == std::string_view::npos) {
      add(std::string(name));
      continue;
    }
    const int count = std::atoi(std::string(name.substr(angle + 1)).c_str());
    for (int i = 0; i < count; ++i) add(std::string(name.substr(0, angle)) + std::to_string(i));
  }
  return true;
}

bool BodyParser::Instruction(std::string_view text) {
  Statement statement;
  statement.line = line_;
  for (bool space = false; char c : text) {  // one line, single spaces
    const bool blank = std::isspace(static_cast<unsigned char>(c));
    if (!(blank && space)) statement.text += blank ? ' ' : c;
    space = blank;
  }
  text = statement.text;
  if (text[0] == '@') {
    const size_t end = text.find(' ');
    if (end == std::string_view::npos) return Fail("guard without instruction: " + statement.text);
    std::string_view guard = text.substr(1, end - 1);
    if ((statement.guard_negated = guard[0] == '!')) guard.remove_prefix(1);
    const int* found = Find(&Scope::registers, guard);
    if (found == nullptr) return Fail("unknown predicate in: " + statement.text);
    statement.guard = *found;
    text = Trim(text.substr(end));
  }
  const size_t end = std::min(text.find(' '), text.size());
  statement.opcode = text.substr(0, end);
  const std::string_view rest = Trim(text.substr(end));
  const bool branch = statement.opcode == "bra" || statement.opcode == "bra.uni";
  if (branch || statement.opcode.substr(0, 7) == "brx.idx") {
    std::string_view label = rest;
    if (!branch) {
      const size_t comma = rest.find(',');
      if (comma == std::string_view::npos) return Fail("brx.idx wants an index and a table: " + statement.text);
      Operand index;
      if (!ParseOperand(Trim(rest.substr(0, comma)), &index)) return false;
      statement.operands.push_back(std::move(index));
      label = Trim(rest.substr(comma + 1));
    } else {
      references_.push_back({static_cast<int>(function_.statements.size()), std::string(label), "", scope_});
    }
    Operand target;
    target.kind = Operand::kLabel;
    target.name = label;
    statement.operands.push_back(std::move(target));
  } else if (statement.opcode.substr(0, 4) == "call") {
    std::string list(rest);  // "(ret), name, (a, b)": parentheses are vectors, the name is a symbol
    for (char& c : list) c = c == '(' ? '{' : c == ')' ? '}' : c;
    if (!List(list, ',', &statement.operands)) return false;
  } else if (!List(rest, ',', &statement.operands)) {
    return false;
  }
  function_.statements.push_back(std::move(statement));
  return true;
}

// Splits at separators outside brackets and braces.
bool BodyParser::List(std::string_view text, char separator, std::vector<Operand>* operands) {
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : separator;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (c != separator || depth != 0) continue;
    const std::string_view piece = Trim(text.substr(begin, i - begin));
    begin = i + 1;
    if (piece.empty()) continue;
    operands->emplace_back();
    if (!ParseOperand(piece, &operands->back())) return false;
  }
  return true;
}

bool BodyParser::Address(std::string_view inside, Operand* operand) {
  operand->kind = Operand::kAddress;
  if (!List(inside, ',', &operand->parts) || operand->parts.empty())
    return Fail("address [" + std::string(inside) + "]");
  operand->offset = operand->parts[0].offset;
  operand->parts[0].offset = 0;
  return true;
}

bool BodyParser::ParseOperand(std::string_view text, Operand* operand) {
  if (text[0] == '[') return Address(text.substr(1, text.rfind(']') - 1), operand);
  if (text[0] == '{') {
    operand->kind = Operand::kVector;
    return List(text.substr(1, text.rfind('}') - 1), ',', &operand->parts);
  }
  if (text.find('|') != std::string_view::npos) {
    operand->kind = Operand::kPair;
    return List(text, '|', &operand->parts);
  }
  if (text == "_") return true;
  if (text[0] == '!') {
    if (!ParseOperand(Trim(text.substr(1)), operand)) return false;
    operand->negated = true;
    return true;
  }
  if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
    operand->kind = Operand::kImmediate;
    const std::string number(text);
    const std::string_view prefix = text.substr(0, 2);
    if (prefix == "0f" || prefix == "0F" || prefix == "0d" || prefix == "0D") {
      operand->is_float = true;
      operand->bits = std::strtoull(number.c_str() + 2, nullptr, 16);
    } else if (text.find('.') != std::string_view::npos) {
      operand->is_float = true;
      operand->bits = std::bit_cast<uint64_t>(std::strtod(number.c_str(), nullptr));
    } else if (text[0] == '-') {
      operand->bits = static_cast<uint64_t>(std::strtoll(number.c_str(), nullptr, 0));
      operand->offset = static_cast<int64_t>(operand->bits);
    } else {
      operand->bits = std::strtoull(number.c_str(), nullptr, 0);
      operand->offset = static_cast<int64_t>(operand->bits);
    }
    return true;
  }
  std::string_view name = text;
  const size_t sign = text.find_first_of("+-");
  if (sign != std::string_view::npos) {
    name = Trim(text.substr(0, sign));
    std::string offset(Trim(text.substr(text[sign] == '+' ? sign + 1 : sign)));
    operand->offset = std::strtoll(offset.c_str(), nullptr, 0);
  }
  if (const int* found = Find(&Scope::registers, name)) {
    operand->kind = Operand::kRegister;
    operand->index = *found;
    return true;
  }
  if (name[0] == '%') {
    operand->kind = Operand::kSpecial;
    operand->name = name;
    return true;
  }
  if (!IsIdentifier(name)) return Fail("operand " + std::string(text));
  operand->kind = Operand::kSymbol;
  const std::string* unique = Find(&Scope::variables, name);
  operand->name = unique != nullptr ? *unique : std::string(name);
  return true;
}

int BodyParser::FindLabel(int scope, std::string_view name) const {
  for (; scope >= 0; scope = scopes_[scope].parent) {
    const auto found = scopes_[scope].labels.find(name);
    if (found != scopes_[scope].labels.end()) return found->second;
  }
  return -1;
}

bool BodyParser::Resolve() {
  for (const Reference& reference : references_) {
    const int target = FindLabel(reference.scope, reference.label);
    if (target < 0) return Fail("unknown label " + reference.label + " in " + function_.name);
    if (reference.statement < 0) {
      function_.branch_tables[reference.table].push_back(target);
    } else {
      function_.statements[reference.statement].operands.back().index = target;
    }
  }
  return true;
}

}  // namespace

bool ParseBody(std::string_view body, int line, Function* function, std::string* error) {
  return BodyParser(function).Parse(body, line, error);
}

}  // namespace tessera::vgpu
