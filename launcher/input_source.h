// Where query, key and value rows come from: a safetensors file, or a generator keyed by global position.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "launcher/host_tensor.h"
#include "partition/problem.h"
#include "runtime/base/geometry.h"
#include "runtime/base/safetensors.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

enum class Operand : uint8_t { kQuery, kKey, kValue, kOutputGradient };

class InputSource {
 public:
  virtual ~InputSource() = default;
  // Fills dense `rows` with the rows of `segments` (global tokens), in order.
  virtual Status Read(Operand operand, std::span<const Segment> segments, const TensorView& rows) const = 0;
};

// Tensors "q", "k" and "v" of one file.
class FileInput final : public InputSource {
 public:
  explicit FileInput(SafetensorsFile file) : file_(std::move(file)) {}
  // The problem's lengths, heads, widths and dtype. InvalidArgument names the tensors whose shapes or types disagree.
  StatusOr<Problem> ShapeOfProblem() const;
  Status Read(Operand operand, std::span<const Segment> segments, const TensorView& rows) const override;

 private:
  SafetensorsFile file_;
};

// Standard normals; every rank count sees the same tensors.
class GeneratedInput final : public InputSource {
 public:
  explicit GeneratedInput(uint64_t seed) : seed_(seed) {}
  Status Read(Operand operand, std::span<const Segment> segments, const TensorView& rows) const override;

 private:
  uint64_t seed_;
};

// The tensor of `operand` that `problem` asks for, with `tokens` rows, uninitialised.
StatusOr<HostTensor> AllocateOperand(const Problem& problem, Operand operand, int64_t tokens);

}  // namespace tessera::launcher
