// What is asked of a caller of CacheReshard, before anything moves. Internal to the engine.
#pragma once

#include "runtime/engine/reshard.h"

namespace tessera {

// Nothing here depends on the rank, so either all ranks go on or none.
Status CheckReshard(const ReshardSpec& spec, const ReshardOptions& options, int world);
// `name` is "source" or "destination".
Status CheckCache(const char* name, const PagedCache& cache, const CacheRowShape& shape, int layers);
Status CheckSource(const ReshardSpec& spec, const ReshardOptions& options, int rank, Range layers,
                   const ReshardSource& source);

}  // namespace tessera
