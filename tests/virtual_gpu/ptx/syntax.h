// PTX after parsing, before it is turned into something that runs: names are resolved, opcodes are still text.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/virtual_gpu/ptx/machine.h"

namespace tessera::vgpu {

struct Register {
  std::string name;
  int bits = 32;  // 16 (also for 8), 32, 64, 128; 1 for predicates
};

struct Operand {
  enum Kind {
    kRegister,   // index
    kImmediate,  // bits
    kSpecial,    // %tid.x: name
    kSymbol,     // a variable's address, + offset: name
    kAddress,    // [...]: parts are the base (register, symbol or immediate) and for tensors the coordinates; offset
    kVector,     // {a, b}: parts
    kPair,       // a|b: parts
    kSink,       // _
    kLabel,      // name, index is the statement once resolved
  };
  Kind kind = kSink;
  int index = -1;
  bool negated = false;   // !p
  bool is_float = false;  // a 0f or 0d immediate
  uint64_t bits = 0;
  int64_t offset = 0;
  std::string name;
  std::vector<Operand> parts;
};

struct Statement {
  int line = 0;
  std::string text;    // as in the PTX, for messages
  std::string opcode;  // "ld.global.nc.v4.f32"
  int guard = -1;      // register; -1 for none
  bool guard_negated = false;
  std::vector<Operand> operands;
};

struct Variable {
  enum Space { kGlobal, kConst, kShared, kLocal, kParam };
  std::string name;
  Space space = kGlobal;
  uint64_t bytes = 0;  // 0 for extern shared arrays
  uint64_t align = 1;
  bool is_extern = false;
  uint64_t offset = 0;           // in the parameter block, local frame or shared window, once laid out
  std::vector<uint8_t> initial;  // .global, .const; shorter than bytes means zeros
  std::vector<std::pair<uint64_t, std::string>> initial_addresses;  // byte offset, variable
};

struct Function {
  std::string name;
  bool is_entry = false;
  bool is_declaration = false;
  std::vector<Variable> parameters;
  std::vector<Variable> results;  // of .func
  std::vector<Register> registers;
  std::vector<Variable> variables;  // .shared, .local and .param inside the body; names made unique by scope
  std::vector<Statement> statements;
  std::map<std::string, std::vector<int>> branch_tables;  // of brx.idx: statement numbers
  uint32_t max_threads = 1024;
  Dim3 required_cluster{0, 0, 0};
};

struct Syntax {
  std::vector<Variable> variables;
  std::vector<Function> functions;
};

// False with *error set when the text is not PTX as we know it.
bool ParseSyntax(std::string_view ptx, Syntax* syntax, std::string* error);

// The parser's parts.
bool ParseVariable(std::string_view text, Variable* variable, std::string* error);
// `body` is the text between the outer braces, which begins on `line`.
bool ParseBody(std::string_view body, int line, Function* function, std::string* error);

}  // namespace tessera::vgpu
