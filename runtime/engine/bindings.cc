#include "runtime/engine/bindings.h"

#include "runtime/engine/tensor_check.h"

namespace tessera {

TensorView Writable(const ConstTensorView& view) {
  return {const_cast<void*>(view.data),
          view.dtype,
          view.space,
          view.rows,
          view.heads,
          view.width,
          view.row_stride,
          view.head_stride};
}

Status CheckBindings(std::span<const Binding> bindings, std::span<const Slot> slots, DType dtype, MemorySpace space) {
  for (const Binding& b : bindings) {
    const DType expected = b.slot == kResultLseSlot ? AccumulatorType(dtype) : dtype;
    TESSERA_RETURN_IF_ERROR(CheckTensor(b.name, b.view, slots[b.slot], expected, space));
  }
  return absl::OkStatus();
}

Status CheckOutputsApart(std::span<const Binding> bindings) {
  for (const Binding& b : bindings) {
    for (const Binding& other : bindings) {
      if (!b.output || b.slot == other.slot) continue;
      TESSERA_RETURN_IF_ERROR(CheckDisjoint(b.name, b.view, other.name, other.view));
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera
