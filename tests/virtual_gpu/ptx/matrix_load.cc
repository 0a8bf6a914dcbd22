// ldmatrix and stmatrix: 8 x 8 matrices of 16-bit elements, one row of 16 bytes per address.
#include "tests/virtual_gpu/ptx/memory_access.h"
#include "tests/virtual_gpu/ptx/shared_shadow.h"

namespace tessera::vgpu {
namespace {

constexpr int kRows = 8, kRowBytes = 16;
constexpr uint32_t kTransposed = 1;

// All lanes must be here: the instructions are .aligned.
Signal WholeWarp(const Instruction& i, Warp& w, uint32_t lanes) {
  if (w.live != kAllLanes) return w.Fail(i, FaultKind::kBarrier, -1, "lanes of the warp have ended; it needs all 32");
  return lanes == kAllLanes ? Signal::kNext : Signal::kWaitLanes;
}

// Rows are served eight at a time: two of them conflict when they lie in the same 16 of the 128 bytes of all banks.
void Count(Counters& c, const uint64_t* addresses, int matrices, bool write) {
  for (int m = 0; m < matrices; ++m) {
    int used[kRows] = {};
    int most = 0;
    for (int r = 0; r < kRows; ++r) {
      bool repeated = false;
      for (int q = 0; q < r; ++q) repeated |= addresses[m * kRows + q] == addresses[m * kRows + r];
      if (!repeated) most = std::max(most, ++used[addresses[m * kRows + r] / kRowBytes % kRows]);
    }
    c.shared_passes += most;
    ++c.shared_ideal_passes;
  }
  ++c.shared_requests;
  (write ? c.shared_written_bytes : c.shared_read_bytes) += uint64_t{kRows * kRowBytes} * matrices;
}

// The rows of all matrices; checks bounds, alignment and, for reads, shared-memory rules.
Signal Rows(const Instruction& i, Warp& w, int matrices, bool write, const uint8_t* rows[kLanes]) {
  uint64_t addresses[kLanes];
  LaneAddresses(i, w, write ? 0 : 4, addresses);
  SharedShadow* shadow = w.block->shadow.get();
  const auto access = SharedShadow::Of(w, SharedShadow::kManyLanes);
  for (int r = 0; r < matrices * kRows; ++r) {
    if (addresses[r] % kRowBytes != 0) {
      return w.Fail(i, FaultKind::kMisaligned, r, "a row's address must be a multiple of 16 bytes");
    }
    Block* owner = w.block;
    uint8_t* row = SharedBytes(i, w, r, addresses[r], kRowBytes, false, &owner);
    if (row == nullptr) return Signal::kFault;
    rows[r] = row;
    if (write || shadow == nullptr) continue;
    const uint32_t offset = static_cast<uint32_t>(addresses[r] - kSharedBase);
    if (!shadow->Read(access, offset, kRowBytes)) {
      const auto problem = shadow->Describe(access, offset, kRowBytes, false, *w.block->run->kernel);
      return w.Fail(i, problem.kind, r, problem.what);
    }
  }
  Count(w.block->run->counters, addresses, matrices, write);
  return Signal::kNext;
}

// small: matrices; operand 0 to 3: registers; 4: address.
Signal LdMatrix(const Instruction& i, Warp& w, uint32_t lanes) {
  Signal signal = WholeWarp(i, w, lanes);
  if (signal != Signal::kNext) return signal;
  const uint8_t* rows[kLanes];
  signal = Rows(i, w, i.small, false, rows);
  if (signal != Signal::kNext) return signal;
  for (int m = 0; m < i.small; ++m) {
    uint32_t* to = w.Write(i.operand[m]);
    if ((i.flags & kTransposed) == 0) {
      for (int r = 0; r < kRows; ++r) std::memcpy(to + 4 * r, rows[m * kRows + r], kRowBytes);
      continue;
    }
    uint16_t element[kRows][kRows];
    for (int r = 0; r < kRows; ++r) std::memcpy(element[r], rows[m * kRows + r], kRowBytes);
    for (int l = 0; l < kLanes; ++l) {
      const int column = l / 4, row = l % 4 * 2;
      to[l] = element[row][column] | uint32_t{element[row + 1][column]} << 16;
    }
  }
  return Signal::kNext;
}

// operand 0: address; 1 to 4: registers.
Signal StMatrix(const Instruction& i, Warp& w, uint32_t lanes) {
  Signal signal = WholeWarp(i, w, lanes);
  if (signal != Signal::kNext) return signal;
  const uint8_t* rows[kLanes];
  signal = Rows(i, w, i.small, true, rows);
  if (signal != Signal::kNext) return signal;
  for (int m = 0; m < i.small; ++m) {
    const uint32_t* from = w.Read(i.operand[1 + m]);
    uint16_t element[kRows][kRows];
    for (int l = 0; l < kLanes; ++l) {
      const bool transposed = (i.flags & kTransposed) != 0;
      for (int h = 0; h < 2; ++h) {
        const int major = l / 4, minor = l % 4 * 2 + h;
        element[transposed ? minor : major][transposed ? major : minor] = static_cast<uint16_t>(from[l] >> (16 * h));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      uint8_t* row = const_cast<uint8_t*>(rows[m * kRows + r]);
      const bool same = std::memcmp(row, element[r], kRowBytes) == 0;
      signal = CheckSharedWrite(i, w, SharedShadow::kManyLanes, row, kRowBytes, same);
      if (signal != Signal::kNext) return signal;
      std::memcpy(row, element[r], kRowBytes);
    }
  }
  return Signal::kNext;
}

}  // namespace

Handler BindMatrixLoad(Binder& b) {
  const std::string_view name = b.Part(0);
  const bool load = name == "ldmatrix";
  if ((!load && name != "stmatrix") || !b.Has("m8n8") || b.LastType() != Type::kB16 || b.Operands() != 2)
    return nullptr;
  Instruction& out = b.out();
  out.kind = InstructionClass::kMatrixLoad;
  const Operand& registers = b.At(load ? 0 : 1);
  const std::vector<Operand> single = {registers};
  const std::vector<Operand>& list = registers.kind == Operand::kVector ? registers.parts : single;
  const size_t matrices = b.Has("x4") ? 4 : b.Has("x2") ? 2 : 1;
  if (list.size() != matrices) return nullptr;
  for (size_t m = 0; m < matrices; ++m) {
    out.operand[(load ? 0 : 1) + m] = load ? b.Destination(list[m], 32) : b.Source(list[m], 32);
  }
  b.BindAddress(b.At(load ? 1 : 0), load ? 4 : 0);
  out.small = static_cast<uint8_t>(matrices);
  out.flags |= b.Has("trans") ? kTransposed : 0;
  return load ? &LdMatrix : &StMatrix;
}

}  // namespace tessera::vgpu
