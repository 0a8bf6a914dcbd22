// The caller's tensors of an execution and the external slots they stand for. Internal to the engine.
#pragma once

#include <span>

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// Inputs are copied in when they are not dense, outputs copied out.
struct Binding {
  SlotId slot;
  const char* name;
  ConstTensorView view;
  bool output;
};

// The same tensor to write to. Plans never write to input slots: see Verify.
TensorView Writable(const ConstTensorView& view);

// CheckTensor of each: `dtype` is the problem's, log-sum-exps are in its accumulator type.
Status CheckBindings(std::span<const Binding> bindings, std::span<const Slot> slots, DType dtype, MemorySpace space);
// CheckDisjoint of every output and every other tensor.
Status CheckOutputsApart(std::span<const Binding> bindings);

}  // namespace tessera
