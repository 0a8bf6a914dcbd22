#include "runtime/device/cuda/range.h"

#include <nvtx3/nvToolsExt.h>

namespace tessera {
namespace {

nvtxDomainHandle_t Domain() {
  static const nvtxDomainHandle_t domain = nvtxDomainCreateA("Tessera");
  return domain;
}

}  // namespace

ProfilerRange::ProfilerRange(const char* name) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(Domain(), &attributes);
}

ProfilerRange::~ProfilerRange() {
  nvtxDomainRangePop(Domain());
}

}  // namespace tessera
