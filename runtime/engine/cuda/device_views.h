// Slots as kernels take them. Internal to the engine.
#pragma once

#include "kernels/cuda/attend.h"
#include "runtime/engine/slots.h"

namespace tessera {

inline cuda::ConstDeviceView Read(const SlotTable& slots, SlotId id) {
  const TensorView view = slots.View(id);
  return {view.data, view.row_stride, view.head_stride};
}
inline cuda::DeviceView Write(const SlotTable& slots, SlotId id) {
  const TensorView view = slots.View(id);
  return {view.data, view.row_stride, view.head_stride};
}

}  // namespace tessera
