#include "process_group.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>
#include <list>

#include "result.h"
#include "waiters.h"

namespace tessera_torch {
namespace {

using Group = c10d::ProcessGroup;
using Work = decltype(std::declval<Group&>().barrier());

// A message to or from a peer or, when there is no work, this rank itself.
struct Message {
  at::Tensor buffer;  // what the group sends or fills; a byte of its own for a message without bytes
  Work work;
  std::shared_ptr<Pending> pending = std::make_shared<Pending>();
  void* sent = nullptr;  // to itself
  void* received = nullptr;
  size_t bytes = 0;
  int64_t tag = 0;
};

// The C callbacks. They never block: gloo's operations start without waiting, and waiters hold the ends.
class Transport {
 public:
  explicit Transport(c10::intrusive_ptr<Group> group) : group_(std::move(group)) {}
  ~Transport() {
    for (Message* message : open_) Forget(message);
  }

  static int Send(void* context, const void* data, size_t bytes, int peer, int64_t tag, void** request) {
    return static_cast<Transport*>(context)->Start(const_cast<void*>(data), bytes, peer, tag, true, request);
  }
  static int Receive(void* context, void* data, size_t bytes, int peer, int64_t tag, void** request) {
    return static_cast<Transport*>(context)->Start(data, bytes, peer, tag, false, request);
  }
  static int Test(void* context, void* request, int* done) {
    auto& transport = *static_cast<Transport*>(context);
    auto* message = static_cast<Message*>(request);
    const Pending::State state = message->pending->state();
    *done = state == Pending::State::kDone;
    if (state != Pending::State::kWaiting) transport.Close(message);
    return state == Pending::State::kFailed ? 1 : 0;
  }
  static int Cancel(void* context, void* request) {
    auto* message = static_cast<Message*>(request);
    auto& transport = *static_cast<Transport*>(context);
    Forget(message);
    transport.Close(message);
    return 0;
  }

 private:
  int Start(void* data, size_t bytes, int peer, int64_t tag, bool sends, void** request) {
    try {
      auto message = std::make_unique<Message>();
      message->bytes = bytes;
      message->tag = tag;
      if (peer == group_->getRank()) {
        (sends ? message->sent : message->received) = data;
        (sends ? sends_ : receives_).push_back(message.get());
        Match();
      } else {
        const at::AutoDispatchBelowAutograd no_autograd;
        const auto bytes_of = at::TensorOptions().dtype(at::kByte);
        message->buffer =
            bytes > 0 ? at::from_blob(data, {static_cast<int64_t>(bytes)}, bytes_of) : at::zeros({1}, bytes_of);
        std::vector<at::Tensor> tensors = {message->buffer};
        message->work = sends ? group_->send(tensors, peer, static_cast<int>(tag))
                              : group_->recv(tensors, peer, static_cast<int>(tag));
        waiters_.Start(message->pending, [work = message->work]() mutable {
          bool success = false;
          try {
            success = work->wait();
          } catch (const std::exception&) {  // the peer is gone, or the message was taken back
          }
          return success;
        });
      }
      open_.push_back(message.get());
      *request = message.release();
      return 0;
    } catch (const std::exception&) {
      return 1;
    }
  }

  // Messages to itself: the oldest send and receive of a tag belong together.
  void Match() {
    for (auto send = sends_.begin(); send != sends_.end();) {
      auto receive = receives_.begin();
      while (receive != receives_.end() && (*receive)->tag != (*send)->tag) ++receive;
      if (receive == receives_.end()) {
        ++send;
        continue;
      }
      const bool fits = (*send)->bytes == (*receive)->bytes;
      if (fits && (*send)->bytes > 0) std::memcpy((*receive)->received, (*send)->sent, (*send)->bytes);
      (*send)->pending->Finish(fits);
      (*receive)->pending->Finish(fits);
      receives_.erase(receive);
      send = sends_.erase(send);
    }
  }

  // Ends the wait for a message that will not come.
  static void Forget(Message* message) {
    if (message->work == nullptr || message->pending->state() != Pending::State::kWaiting) return;
    try {
      message->work->abort();
    } catch (const std::exception&) {  // it has ended meanwhile
    }
  }
  void Close(Message* message) {
    open_.remove(message);
    sends_.remove(message);
    receives_.remove(message);
    delete message;
  }

  c10::intrusive_ptr<Group> group_;
  std::list<Message*> open_, sends_, receives_;  // sends_ and receives_: to itself, not yet matched
  Waiters waiters_;                              // its end waits for the aborted ones
};

class ProcessGroup final : public Communicator {
 public:
  ProcessGroup(c10::intrusive_ptr<Group> group, int64_t deadline_ms)
      : group_(group), transport_(std::make_unique<Transport>(std::move(group))) {
    tessera_callbacks callbacks = TESSERA_INIT(tessera_callbacks);
    callbacks.rank = group_->getRank();
    callbacks.size = group_->getSize();
    callbacks.context = transport_.get();
    callbacks.deadline_ms = deadline_ms;
    callbacks.isend = Transport::Send;
    callbacks.irecv = Transport::Receive;
    callbacks.test = Transport::Test;
    callbacks.cancel = Transport::Cancel;
    tessera_comm* comm = nullptr;
    Check(tessera_comm_create_callbacks(&callbacks, &comm));
    Adopt(comm);
  }
  ~ProcessGroup() override { Close(); }  // before the transport that it calls

 private:
  void Sum(const at::Tensor& tensor) override {
    const at::AutoDispatchBelowAutograd no_autograd;
    std::vector<at::Tensor> tensors = {tensor};
    group_->allreduce(tensors)->wait();
  }
  void CloseTransport() override { transport_.reset(); }

  c10::intrusive_ptr<Group> group_;
  std::unique_ptr<Transport> transport_;
};

}  // namespace

std::shared_ptr<Communicator> MakeProcessGroup(c10::intrusive_ptr<c10d::ProcessGroup> group, int64_t deadline_ms) {
  return std::make_shared<ProcessGroup>(std::move(group), deadline_ms);
}

}  // namespace tessera_torch
