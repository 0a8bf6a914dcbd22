#include "tests/virtual_gpu/cudart/fat_binary.h"

#include <charconv>
#include <cstdint>
#include <cstring>

namespace tessera::vgpu {
namespace {

constexpr uint32_t kWrapperMagic = 0x466243b1;
constexpr uint32_t kContainerMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1;
constexpr uint16_t kElf = 2;

struct Wrapper {
  uint32_t magic;
  uint32_t version;
  const unsigned char* container;
  void* file_name;
};
struct ContainerHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  uint64_t payload_bytes;
};
struct EntryHeader {
  uint16_t kind;
  uint16_t version;
  uint32_t header_bytes;
  uint64_t payload_bytes;
  uint32_t compressed_bytes;
  uint32_t unknown;
  uint16_t minor, major;
  uint32_t architecture;
};

PtxImage ReadPtx(const unsigned char* payload, size_t bytes) {
  PtxImage image;
  const auto* const text = reinterpret_cast<const char*>(payload);
  image.text = std::string_view(text, strnlen(text, bytes));
  constexpr std::string_view kTarget = ".target sm_";
  const size_t at = image.text.find(kTarget);
  if (at == std::string_view::npos) return image;
  const char* const number = image.text.data() + at + kTarget.size();
  const char* const end = image.text.data() + image.text.size();
  const char* const stop = std::from_chars(number, end, image.architecture).ptr;
  image.specific = stop < end && (*stop == 'a' || *stop == 'f');
  return image;
}

}  // namespace

FatBinary ReadFatBinary(const void* address) {
  FatBinary binary;
  Wrapper wrapper;
  std::memcpy(&wrapper, address, sizeof wrapper);
  ContainerHeader header;
  if (wrapper.magic == kWrapperMagic) std::memcpy(&header, wrapper.container, sizeof header);
  if (wrapper.magic != kWrapperMagic || header.magic != kContainerMagic) {
    binary.error = "this is no fat binary of a kind that is known";
    return binary;
  }
  const unsigned char* at = wrapper.container + header.header_bytes;
  const unsigned char* const end = at + header.payload_bytes;
  while (at + sizeof(EntryHeader) <= end) {
    EntryHeader entry;
    std::memcpy(&entry, at, sizeof entry);
    if (entry.header_bytes < sizeof entry || entry.payload_bytes > static_cast<uint64_t>(end - at)) break;
    if (entry.kind == kElf) binary.machine_code.push_back(static_cast<int>(entry.architecture));
    if (entry.kind == kPtx) {
      const PtxImage image = ReadPtx(at + entry.header_bytes, entry.payload_bytes);
      if (image.architecture == 0) {
        binary.error = "its PTX is compressed: build with nvcc --no-compress";
      } else {
        binary.ptx.push_back(image);
      }
    }
    at += entry.header_bytes + entry.payload_bytes;
  }
  return binary;
}

const PtxImage* FatBinary::For(int capability) const {
  const PtxImage* best = nullptr;
  for (const PtxImage& image : ptx) {
    const bool runs = image.specific ? image.architecture == capability : image.architecture <= capability;
    if (!runs) continue;
    if (best == nullptr || image.architecture > best->architecture ||
        (image.architecture == best->architecture && image.specific)) {
      best = &image;
    }
  }
  return best;
}

std::string FatBinary::Describe() const {
  std::string text = machine_code.empty() ? "no SASS" : "SASS for";
  for (const int architecture : machine_code) text.append(" ").append(std::to_string(architecture));
  text += ptx.empty() ? "; no PTX" : "; PTX for";
  for (const PtxImage& image : ptx) {
    text.append(" ").append(std::to_string(image.architecture)).append(image.specific ? "a" : "");
  }
  return text;
}

}  // namespace tessera::vgpu
