#include "tests/virtual_gpu/ptx/bulk_copies.h"

namespace tessera::vgpu {

bool DeliverBulkCopy(Execution&, Cluster&) {
  return false;
}

bool EndOfBulkCopies(Execution&, Cluster&) {
  return true;
}

}  // namespace tessera::vgpu
