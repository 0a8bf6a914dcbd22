#include "runtime/device/numa.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace tessera {
namespace {

// Reads a number from the front of `text`; -1 when there is none or it is no core of a CoreMask.
int TakeCore(std::string_view* text) {
  int core = -1;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), core);
  if (error != std::errc() || core < 0 || core >= static_cast<int>(CoreMask().size())) return -1;
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  return core;
}

}  // namespace

StatusOr<CoreMask> ParseCoreList(std::string_view list) {
  CoreMask mask;
  std::string_view left = list.substr(0, list.find_last_not_of("\n ") + 1);
  while (!left.empty()) {
    const int first = TakeCore(&left);
    int last = first;
    if (first >= 0 && left.starts_with('-')) {
      left.remove_prefix(1);
      last = TakeCore(&left);
    }
    const bool more = left.starts_with(',');
    if (more) left.remove_prefix(1);
    if (first < 0 || last < first || left.empty() == more) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", std::string(list), "\" is no list of cores below ", mask.size(), " such as 0-3,8"));
    }
    for (int core = first; core <= last; ++core) mask.set(core);
  }
  return mask;
}

std::string ToString(const CoreMask& cores) {
  std::string text;
  for (size_t begin = 0; begin < cores.size(); ++begin) {
    if (!cores[begin]) continue;
    size_t last = begin;
    while (last + 1 < cores.size() && cores[last + 1]) ++last;
    absl::StrAppend(&text, text.empty() ? "" : ",", begin);
    if (last > begin) absl::StrAppend(&text, "-", last);
    begin = last;
  }
  return text;
}

std::vector<NumaNode> ReadNumaNodes(const std::string& folder) {
  std::vector<NumaNode> nodes;
  std::error_code error;
  // Stepping to the next entry can fail too, and a range-based loop would throw.
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    NumaNode node;
    if (!name.starts_with("node")) continue;
    const auto [rest, number_error] = std::from_chars(name.data() + 4, name.data() + name.size(), node.id);
    if (number_error != std::errc() || rest != name.data() + name.size()) continue;
    std::ifstream file(it->path() / "cpulist");
    const std::string list{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const StatusOr<CoreMask> cores = ParseCoreList(list);
    if (!cores.ok()) return {};
    node.cores = *cores;
    if (node.cores.any()) nodes.push_back(node);
  }
  if (error) return {};
  std::ranges::sort(nodes, {}, &NumaNode::id);
  return nodes;
}

CoreMask CoresOfThisThread() {
  CoreMask mask;
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return mask;
  for (size_t i = 0; i < mask.size() && i < CPU_SETSIZE; ++i) mask[i] = CPU_ISSET(i, &cores) != 0;
  return mask;
}

uint64_t NodesToInterleave(std::span<const NumaNode> nodes, const CoreMask& cores) {
  uint64_t met = 0;
  for (const NumaNode& node : nodes) {
    if (node.id < 64 && (node.cores & cores).any()) met |= uint64_t{1} << node.id;
  }
  return (met & (met - 1)) == 0 ? 0 : met;
}

bool InterleavePages(void* data, int64_t bytes, uint64_t nodes) {
  constexpr int kInterleave = 3;           // MPOL_INTERLEAVE of linux/mempolicy.h
  constexpr unsigned long kMaskBits = 65;  // the system reads one bit less
  const unsigned long mask = nodes;
  return syscall(SYS_mbind, data, static_cast<unsigned long>(bytes), kInterleave, &mask, kMaskBits, 0u) == 0;
}

}  // namespace tessera
