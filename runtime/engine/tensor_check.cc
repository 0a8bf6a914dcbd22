#include "runtime/engine/tensor_check.h"

#include <cmath>
#include <cstddef>

#include "runtime/engine/overlap.h"

namespace tessera {

Status CheckTensor(std::string_view name, const ConstTensorView& view, const Slot& slot, DType dtype,
                   MemorySpace space) {
  const auto reject = [&](const char* field, const auto& value, const auto& expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), ": ", field, " is ", value, "; this rank's plan needs ", expected));
  };
  if (view.rows != slot.rows) return reject("rows", view.rows, slot.rows);
  if (view.heads != slot.heads.size()) return reject("heads", view.heads, slot.heads.size());
  if (view.width != slot.width) return reject("width", view.width, slot.width);
  if (view.dtype != dtype) return reject("dtype", std::string(Name(view.dtype)), std::string(Name(dtype)));
  const auto name_of = [](MemorySpace s) { return s == MemorySpace::kHost ? "host" : "device"; };
  if (view.space != space) return reject("memory space", name_of(view.space), name_of(space));
  if (view.data == nullptr && view.elements() > 0) return reject("data", "null", "memory");
  return absl::OkStatus();
}

Status CheckVector(std::string_view name, std::span<const float> values, bool needed, int heads) {
  const size_t expected = needed ? heads : 0;
  if (values.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d values; the problem needs %d", std::string(name), values.size(), expected));
  }
  for (float value : values) {
    if (std::isnan(value))
      return absl::InvalidArgumentError(absl::StrFormat("%s: a value is NaN; it must be a number", std::string(name)));
  }
  return absl::OkStatus();
}

Status CheckDisjoint(std::string_view name, const ConstTensorView& written, std::string_view other_name,
                     const ConstTensorView& other) {
  if (!Overlap(written, other)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s overlaps %s in memory; it is written while %s is read and must be apart", std::string(name),
                      std::string(other_name), std::string(other_name)));
}

}  // namespace tessera
