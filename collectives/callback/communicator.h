// A communicator over functions of the caller: a framework that has a transport of its own brings it as a table.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "collectives/communicator.h"

namespace tessera {

// Nonblocking messages between ranks. Functions return 0 for success and anything else for failure, which breaks the
// world. They are never called by two threads at once, but not always by the same thread, and must not block: the time
// inside a function is the one wait that has no deadline.
struct CallbackFunctions {
  // Start a message of `bytes` bytes (zero too) and store a handle, which may be null, in `*request`. The buffer stays
  // valid until the message is done. Messages of one (sender, receiver, tag) are matched in order; a rank may send to
  // itself; a receive names the length that was sent. A receive may be started before or after its send.
  int (*isend)(void* context, const void* data, size_t bytes, int peer, int64_t tag, void** request) = nullptr;
  int (*irecv)(void* context, void* data, size_t bytes, int peer, int64_t tag, void** request) = nullptr;
  // Stores whether the message is done. The handle is not used again after it was done or the function failed.
  int (*test)(void* context, void* request, int* done) = nullptr;
  // Optional. Takes back a message that will not be waited for; the handle is not used again. Called after errors only.
  int (*cancel)(void* context, void* request) = nullptr;
  // Optional. 0 when `peer` is known to be dead.
  int (*alive)(void* context, int peer) = nullptr;
  // Optional. This rank has failed or has given up on the world; called once. The place to tell the peers.
  void (*abort)(void* context, const char* reason) = nullptr;
  void* context = nullptr;
};

struct CallbackOptions {
  int rank = 0;
  int size = 1;
  // Tags lie in [0, tag_limit); at least 2^21, and every communicator made by Split takes 2^21 more.
  int64_t tag_limit = int64_t{1} << 31;
  // There is no heartbeat: a rank that has waited this long without a message or a step of its own gives up. It must
  // exceed the longest time that a peer computes between two messages.
  std::chrono::milliseconds deadline{30000};
};

// The communicator of all ranks. InvalidArgument names a missing function or a wrong number. Communicators made from it
// by Split use the same functions; the context must outlive them all.
StatusOr<std::unique_ptr<Communicator>> MakeCallbackWorld(const CallbackFunctions& functions,
                                                          const CallbackOptions& options);

}  // namespace tessera
