// What `tessera doctor` says about GPUs. Builds with TESSERA_CUDA=ON have gpus_cuda.cc, the others gpus_none.cc.
#pragma once

namespace tessera::launcher {

// Prints a section and returns how many findings it has. `local_ranks` are the ranks of this node.
int PrintGpus(int local_ranks);

}  // namespace tessera::launcher
