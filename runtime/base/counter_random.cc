#include "runtime/base/counter_random.h"

#include <Random123/philox.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace tessera {
namespace {

// Two normals from two uniform 32-bit words (Box and Muller 1958). The first word is shifted by one half so that the
// logarithm never sees zero.
void BoxMuller(uint32_t radius_bits, uint32_t angle_bits, float* normals) {
  const float uniform = (static_cast<float>(radius_bits) + 0.5f) * 0x1p-32f;
  const float radius = std::sqrt(-2.0f * std::log(std::min(uniform, 1.0f)));
  const float angle = static_cast<float>(angle_bits) * (2.0f * std::numbers::pi_v<float> * 0x1p-32f);
  normals[0] = radius * std::cos(angle);
  normals[1] = radius * std::sin(angle);
}

}  // namespace

void FillNormal(uint64_t seed, uint8_t tensor, std::span<const Segment> segments, const TensorView& rows) {
  const r123::Philox4x32 generator;
  const r123::Philox4x32::key_type key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  int64_t row = 0;
  for (const Segment& segment : segments) {
    for (int64_t i = 0; i < segment.count; ++i, ++row) {
      const auto token = static_cast<uint64_t>(segment.token(i));
      for (int head = 0; head < rows.heads; ++head) {
        void* out = rows.At(row, head);
        for (int column = 0; column < rows.width; column += 4) {
          const r123::Philox4x32::ctr_type bits =
              generator({{static_cast<uint32_t>(token), static_cast<uint32_t>(token >> 32), static_cast<uint32_t>(head),
                          uint32_t{tensor} << 24 | static_cast<uint32_t>(column / 4)}},
                        key);
          std::array<float, 4> normals;
          BoxMuller(bits[0], bits[1], &normals[0]);
          BoxMuller(bits[2], bits[3], &normals[2]);
          for (int j = 0; j < std::min(4, rows.width - column); ++j) {
            StoreFromFloat(out, rows.dtype, column + j, normals[j]);
          }
        }
      }
    }
  }
}

}  // namespace tessera
