#include "collectives/host_identity.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

namespace tessera {

uint64_t HostIdentity() {
  std::string identity;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), identity);
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) == 0) identity += name;
  char pid_namespace[64] = {};
  if (readlink("/proc/self/ns/pid", pid_namespace, sizeof(pid_namespace) - 1) > 0) identity += pid_namespace;

  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a: stable between processes, unlike absl::Hash
  for (const char c : identity) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash == 0 ? 1 : hash;
}

bool ProcessIsGone(int32_t pid) {
  return pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

}  // namespace tessera
