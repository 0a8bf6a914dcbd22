// What the opaque handles of tessera.h are.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/capi/tessera.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"

namespace tessera::capi {

// Of a tessera_dtype; nullopt for other numbers.
inline std::optional<DType> ToDType(int dtype) {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
  if (dtype < TESSERA_FLOAT32 || dtype > TESSERA_FLOAT64) return std::nullopt;
  return kDTypes[dtype];
}

}  // namespace tessera::capi

struct tessera_plan {
  tessera::PlanSpec spec;
};

struct tessera_comm {
  std::shared_ptr<tessera::Communicator> comm;
};

// Destroyed from the bottom: the stream waits for what runs, then the attention leaves the communicator.
struct tessera_attention {
  std::shared_ptr<tessera::Communicator> comm;
  std::unique_ptr<tessera::Attention> attention;
  std::string kernel;
  int query_heads = 0;
  bool started = false;
  tessera::CpuStream stream;
};
