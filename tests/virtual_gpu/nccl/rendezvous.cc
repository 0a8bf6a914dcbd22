#include "tests/virtual_gpu/nccl/rendezvous.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

namespace tessera::vgpu {
namespace {

constexpr int kMaxRanks = 256;

// Shared memory starts as zeros, so every field is stored plus one.
struct Page {
  struct Entry {
    std::atomic<int> world_rank;
    std::atomic<int> device;
    std::atomic<int> ready;  // the rest is written
    internal::ContextPool::Mask free_contexts;
  };
  std::atomic<int> ranks;
  std::atomic<int> left;  // ranks that have seen everybody
  Entry entries[kMaxRanks];
};

// Everybody opens the page by name; the last to leave removes the name.
class SharedPage {
 public:
  explicit SharedPage(const ncclUniqueId& id) {
    name_ = "/vgpu-nccl-";
    for (int i = 0; i < 16; ++i) {
      char digits[3];
      std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(id.internal[i]));
      name_ += digits;
    }
    const int file = shm_open(name_.c_str(), O_CREAT | O_RDWR, 0600);
    if (file < 0) return;
    if (ftruncate(file, sizeof(Page)) == 0) {
      void* const address = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      if (address != MAP_FAILED) page_ = static_cast<Page*>(address);
    }
    close(file);
  }
  ~SharedPage() {
    if (page_ != nullptr) munmap(page_, sizeof(Page));
  }
  Page* get() const { return page_; }
  void Remove() { shm_unlink(name_.c_str()); }

 private:
  std::string name_;
  Page* page_ = nullptr;
};

}  // namespace

std::optional<std::vector<Member>> Meet(const ncclUniqueId& id, int ranks, int rank, Member self,
                                        const std::function<bool()>& give_up, std::string* error) {
  if (ranks > kMaxRanks) {
    *error = "more than 256 ranks are not modelled";
    return std::nullopt;
  }
  SharedPage shared(id);
  Page* const page = shared.get();
  if (page == nullptr) {
    *error = std::string("no shared memory: ") + std::strerror(errno);
    return std::nullopt;
  }
  int others = 0;
  if (!page->ranks.compare_exchange_strong(others, ranks) && others != ranks) {
    *error = "ranks disagree about the size of the communicator";
    return std::nullopt;
  }
  page->entries[rank].world_rank = self.world_rank + 1;
  page->entries[rank].device = self.device + 1;
  page->entries[rank].free_contexts = self.free_contexts;
  page->entries[rank].ready = 1;
  std::vector<Member> members(ranks);
  for (int r = 0; r < ranks; ++r) {
    while (page->entries[r].ready == 0) {
      if (give_up()) {
        shared.Remove();
        *error = "aborted while rank " + std::to_string(r) + " was missing";
        return std::nullopt;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    members[r] = {page->entries[r].world_rank - 1, page->entries[r].device - 1, page->entries[r].free_contexts};
  }
  if (++page->left == ranks) shared.Remove();
  return members;
}

ncclUniqueId MakeUniqueId() {
  static std::atomic<uint32_t> made{0};
  ncclUniqueId id;
  std::memset(&id, 0, sizeof id);
  const auto pid = static_cast<uint32_t>(getpid());
  const uint32_t number = ++made;
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  std::memcpy(id.internal, &pid, 4);
  std::memcpy(id.internal + 4, &number, 4);
  std::memcpy(id.internal + 8, &now, 8);
  return id;
}

}  // namespace tessera::vgpu
