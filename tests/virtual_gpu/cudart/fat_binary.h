// The fat binaries that nvcc embeds: which images there are, and the PTX among them. The format is not documented; what
// is used of it is in fat_binary.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera::vgpu {

struct PtxImage {
  std::string_view text;
  int architecture = 0;   // 80, 90, ...
  bool specific = false;  // sm_90a: that very compute capability and no other
};

struct FatBinary {
  std::vector<PtxImage> ptx;
  std::vector<int> machine_code;  // architectures of the SASS images
  std::string error;              // not empty: the container cannot be read

  // The PTX that a driver would compile for this capability (major * 10 + minor), null when there is none: the most
  // specific one, otherwise the newest that is not newer than the device.
  const PtxImage* For(int capability) const;
  std::string Describe() const;  // "SASS for 80, 90; PTX for 80, 90a"
};

// `wrapper` is what __cudaRegisterFatBinary gets. The views point into it.
FatBinary ReadFatBinary(const void* wrapper);

}  // namespace tessera::vgpu
