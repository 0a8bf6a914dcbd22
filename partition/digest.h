// A stable 64-bit digest of values fed field by field, so that padding never enters it. Private to partition.
#pragma once

#include <memory>
#include <string>
#include <type_traits>

#include "partition/layout.h"
#include "runtime/base/geometry.h"
#include "xxhash.h"

namespace tessera {

class Digest {
 public:
  Digest() : state_(XXH3_createState(), XXH3_freeState) { XXH3_64bits_reset(state_.get()); }
  template <typename T>
  Digest& Add(T value) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    XXH3_64bits_update(state_.get(), &value, sizeof value);
    return *this;
  }
  Digest& Add(Range range) { return Add(range.begin).Add(range.end); }
  Digest& Add(const std::string& text) {
    Add(text.size());
    XXH3_64bits_update(state_.get(), text.data(), text.size());
    return *this;
  }
  Digest& Add(const Layout& layout) {
    Add(layout.tokens()).Add(layout.ranks());
    for (int r = 0; r < layout.ranks(); ++r) {
      Add(layout.segments(r).size());
      for (const Segment& s : layout.segments(r)) Add(s.begin).Add(s.count).Add(s.stride);
    }
    return *this;
  }
  uint64_t Value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

}  // namespace tessera
