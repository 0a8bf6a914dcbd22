// What the opaque handles of tessera.h are.
#pragma once

#include <memory>
#include <string>

#include "collectives/communicator.h"
#include "partition/plan.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"

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
