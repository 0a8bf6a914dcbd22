#include "tests/virtual_gpu/ptx/counters.h"

#include <cstdio>
#include <numeric>

namespace tessera::vgpu {
namespace {

constexpr std::array<std::string_view, static_cast<size_t>(InstructionClass::kCount)> kNames = {
    "integer",     "float",        "special",     "convert",      "move",    "control",
    "global load", "global store", "shared load", "shared store", "local",   "parameter",
    "atomic",      "matrix load",  "tensor core", "async copy",   "barrier", "shuffle"};

constexpr uint64_t Counters::*kSums[] = {&Counters::blocks,
                                         &Counters::tensor_flops,
                                         &Counters::global_read_bytes,
                                         &Counters::global_written_bytes,
                                         &Counters::shared_read_bytes,
                                         &Counters::shared_written_bytes,
                                         &Counters::global_requests,
                                         &Counters::global_sectors,
                                         &Counters::global_ideal_sectors,
                                         &Counters::shared_requests,
                                         &Counters::shared_passes,
                                         &Counters::shared_ideal_passes,
                                         &Counters::bulk_copy_bytes};

void Line(std::string& table, std::string_view name, uint64_t value, const char* note = "") {
  if (value == 0) return;
  char line[120];
  std::snprintf(line, sizeof line, "  %-28.*s %14llu%s\n", static_cast<int>(name.size()), name.data(),
                static_cast<unsigned long long>(value), note);
  table += line;
}

}  // namespace

std::string_view Name(InstructionClass c) {
  return kNames[static_cast<size_t>(c)];
}

uint64_t Counters::Instructions() const {
  return std::accumulate(instructions.begin(), instructions.end(), uint64_t{0});
}

Counters& Counters::operator+=(const Counters& other) {
  for (size_t i = 0; i < instructions.size(); ++i) instructions[i] += other.instructions[i];
  for (const auto sum : kSums) this->*sum += other.*sum;
  return *this;
}

std::string Table(std::string_view kernel, const Counters& c) {
  std::string table(kernel);
  table += " (counted by the PTX interpreter, warp instructions)\n";
  Line(table, "blocks", c.blocks);
  Line(table, "instructions", c.Instructions());
  char share[40];
  for (size_t i = 0; i < c.instructions.size(); ++i) {
    std::snprintf(share, sizeof share, "  %5.1f %%", 100.0 * c.instructions[i] / c.Instructions());
    Line(table, kNames[i], c.instructions[i], share);
  }
  Line(table, "tensor-core flops", c.tensor_flops);
  Line(table, "global bytes read", c.global_read_bytes);
  Line(table, "global bytes written", c.global_written_bytes);
  Line(table, "of them bulk copies", c.bulk_copy_bytes);
  Line(table, "global requests", c.global_requests);
  Line(table, "32-byte sectors", c.global_sectors);
  Line(table, "sectors if coalesced", c.global_ideal_sectors);
  Line(table, "shared bytes read", c.shared_read_bytes);
  Line(table, "shared bytes written", c.shared_written_bytes);
  Line(table, "shared requests", c.shared_requests);
  Line(table, "shared passes", c.shared_passes);
  Line(table, "of them bank conflicts", c.BankConflicts());
  return table;
}

}  // namespace tessera::vgpu
