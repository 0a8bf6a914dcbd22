#include "tests/dist/collectives/staged_communicator.h"

#include <algorithm>

namespace tessera::testing {
namespace {

// What the receiver tells the sender: the place of this message among those of the link, or that nothing is to be
// moved.
constexpr int64_t kNothing = -1;

ConstBytes AsBytes(const int64_t& value) {
  return std::as_bytes(std::span(&value, 1));
}
Bytes AsWritableBytes(int64_t& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

// The length of memory that blocks at these displacements span.
int64_t Extent(std::span<const int64_t> counts, std::span<const int64_t> displacements) {
  int64_t extent = 0;
  for (size_t r = 0; r < std::min(counts.size(), displacements.size()); ++r) {
    extent = std::max(extent, displacements[r] + counts[r]);
  }
  return extent;
}

}  // namespace

// Driven from whichever request of the communicator is tested.
class ProgressingRequest final : public internal::RequestImpl {
 public:
  ProgressingRequest(StagedCommunicator& comm, std::shared_ptr<StatusOr<bool>> result)
      : comm_(comm), result_(std::move(result)) {}
  StatusOr<bool> Test() override {
    TESSERA_RETURN_IF_ERROR(comm_.Progress());
    return *result_;
  }

 private:
  StagedCommunicator& comm_;
  const std::shared_ptr<StatusOr<bool>> result_;
};

StatusOr<std::unique_ptr<Communicator>> StagedCommunicator::Make(std::unique_ptr<Communicator> control,
                                                                 const CudaDevice& device) {
  std::unique_ptr<StagedCommunicator> comm(new StagedCommunicator(std::move(control), device));
  TESSERA_ASSIGN_OR_RETURN(comm->stream_, CudaStream::Create(device));
  TESSERA_ASSIGN_OR_RETURN(comm->collectives_, MakeNcclCommunicator(*comm->control_, device));
  TESSERA_ASSIGN_OR_RETURN(comm->headers_, comm->control_->Split(0, comm->rank()));
  TESSERA_ASSIGN_OR_RETURN(comm->clearances_, comm->control_->Split(0, comm->rank()));
  TESSERA_RETURN_IF_ERROR(comm->MakeLinks());
  return std::unique_ptr<Communicator>(std::move(comm));
}

StagedCommunicator::~StagedCommunicator() = default;

Status StagedCommunicator::MakeLinks() {
  to_.resize(size());
  from_.resize(size());
  for (int sender = 0; sender < size(); ++sender) {
    for (int receiver = 0; receiver < size(); ++receiver) {
      if (sender == receiver) continue;
      const bool mine = rank() == sender || rank() == receiver;
      TESSERA_ASSIGN_OR_RETURN(auto pair, control_->Split(mine ? 0 : -1, rank()));
      if (!mine) continue;
      Link& link = rank() == sender ? to_[receiver] : from_[sender];
      link.control = std::move(pair);
      TESSERA_ASSIGN_OR_RETURN(link.stream, CudaStream::Create(device_));
      TESSERA_ASSIGN_OR_RETURN(link.nccl, MakeNcclCommunicator(*link.control, device_));
    }
  }
  return absl::OkStatus();
}

Request StagedCommunicator::Drive(Step step) {
  auto result = std::make_shared<StatusOr<bool>>(false);
  pending_.push_back(std::make_shared<Step>([result, step = std::move(step)]() -> StatusOr<bool> {
    *result = step();
    return !result->ok() || **result;
  }));
  return Request(std::make_unique<ProgressingRequest>(*this, std::move(result)));
}

// Errors stay with the request they belong to.
Status StagedCommunicator::Progress() {
  for (auto it = pending_.begin(); it != pending_.end();) {
    const std::shared_ptr<Step> step = *it;
    TESSERA_ASSIGN_OR_RETURN(const bool over, (*step)());
    it = over ? pending_.erase(it) : std::next(it);
  }
  return absl::OkStatus();
}

StatusOr<DeviceBuffer> StagedCommunicator::Stage(ConstBytes data, CUstream_st* stream) {
  const auto bytes = static_cast<int64_t>(data.size());
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(device_, bytes, "staging", stream));
  TESSERA_RETURN_IF_ERROR(CopyAsync(buffer.data(), data.data(), bytes, stream));
  return buffer;
}

struct StagedCommunicator::Message {
  int64_t header = 0, clearance = kNothing;
  Request header_request, clearance_request;
  bool cleared = false, started = false;
  DeviceBuffer buffer;
  std::optional<CudaEvent> end;
};

StatusOr<Request> StagedCommunicator::Send(ConstBytes data, int peer, int tag) {
  if (peer == rank()) return headers_->Send(data, peer, tag);
  auto message = std::make_shared<Message>();
  message->header = static_cast<int64_t>(data.size());
  TESSERA_ASSIGN_OR_RETURN(message->header_request, headers_->Send(AsBytes(message->header), peer, tag));
  TESSERA_ASSIGN_OR_RETURN(message->clearance_request,
                           clearances_->Receive(AsWritableBytes(message->clearance), peer, tag));
  messages_.bytes_sent += message->header;
  ++messages_.messages_sent;
  return Drive([this, message, data, peer]() -> StatusOr<bool> {
    TESSERA_ASSIGN_OR_RETURN(const bool header_left, message->header_request.Test());
    TESSERA_ASSIGN_OR_RETURN(message->cleared, message->clearance_request.Test());
    if (!header_left || !message->cleared) return false;
    if (message->clearance == kNothing) return true;
    Link& link = to_[peer];
    CUstream_st* const stream = link.stream->handle();
    if (!message->started) {
      if (message->clearance != link.next) return false;
      ++link.next;
      message->started = true;
      TESSERA_ASSIGN_OR_RETURN(message->buffer, Stage(data, stream));
      const SendMessage send{1 - link.nccl->rank(), message->buffer.data(), message->buffer.bytes()};
      TESSERA_RETURN_IF_ERROR(link.nccl->Exchange({&send, 1}, {}, stream));
      TESSERA_ASSIGN_OR_RETURN(message->end, CudaEvent::Create(device_));
      TESSERA_RETURN_IF_ERROR(message->end->Record(stream));
    }
    TESSERA_RETURN_IF_ERROR(link.nccl->Poll());
    return message->end->Done();
  });
}

StatusOr<Request> StagedCommunicator::Receive(Bytes data, int peer, int tag) {
  if (peer == rank()) return headers_->Receive(data, peer, tag);
  auto message = std::make_shared<Message>();
  TESSERA_ASSIGN_OR_RETURN(message->header_request, headers_->Receive(AsWritableBytes(message->header), peer, tag));
  messages_.bytes_received += static_cast<int64_t>(data.size());
  ++messages_.messages_received;
  from_[peer].uncleared[tag].push_back(message);
  return Drive([this, message, data, peer, tag]() -> StatusOr<bool> {
    const auto bytes = static_cast<int64_t>(data.size());
    if (!message->cleared) {
      TESSERA_ASSIGN_OR_RETURN(const bool header_arrived, message->header_request.Test());
      Link& link = from_[peer];
      // Clearances of one tag match the sends by order too.
      if (!header_arrived || link.uncleared[tag].front() != message) return false;
      link.uncleared[tag].pop_front();
      message->cleared = true;
      CUstream_st* const stream = link.stream->handle();
      const bool moves = bytes > 0 && bytes == message->header;
      message->clearance = moves ? link.next++ : kNothing;
      TESSERA_ASSIGN_OR_RETURN(message->clearance_request, clearances_->Send(AsBytes(message->clearance), peer, tag));
      if (moves) {
        TESSERA_ASSIGN_OR_RETURN(message->buffer, DeviceBuffer::Allocate(device_, bytes, "staging", stream));
        const ReceiveMessage receive{1 - link.nccl->rank(), message->buffer.data(), bytes};
        TESSERA_RETURN_IF_ERROR(link.nccl->Exchange({}, {&receive, 1}, stream));
        TESSERA_RETURN_IF_ERROR(CopyAsync(data.data(), message->buffer.data(), bytes, stream));
      }
      TESSERA_ASSIGN_OR_RETURN(message->end, CudaEvent::Create(device_));
      TESSERA_RETURN_IF_ERROR(message->end->Record(stream));
    }
    TESSERA_ASSIGN_OR_RETURN(const bool clearance_left, message->clearance_request.Test());
    if (!clearance_left) return false;
    if (message->header != bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a message of ", message->header, " bytes met a receive of ", bytes));
    }
    TESSERA_RETURN_IF_ERROR(from_[peer].nccl->Poll());
    return message->end->Done();
  });
}

StatusOr<Request> StagedCommunicator::Finish(std::vector<DeviceBuffer> buffers, std::vector<Block> blocks) {
  for (const Block& block : blocks) {
    TESSERA_RETURN_IF_ERROR(CopyAsync(block.to, block.from, block.bytes, stream()));
  }
  auto held = std::make_shared<std::vector<DeviceBuffer>>(std::move(buffers));
  TESSERA_ASSIGN_OR_RETURN(CudaEvent event, CudaEvent::Create(device_));
  auto end = std::make_shared<CudaEvent>(std::move(event));
  TESSERA_RETURN_IF_ERROR(end->Record(stream()));
  return Drive([this, held, end]() -> StatusOr<bool> {
    TESSERA_RETURN_IF_ERROR(collectives_->Poll());
    return end->Done();
  });
}

StatusOr<Request> StagedCommunicator::AllGatherV(ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
                                                 std::span<const int64_t> displacements) {
  std::vector<DeviceBuffer> buffers(2);
  TESSERA_ASSIGN_OR_RETURN(buffers[0],
                           DeviceBuffer::Allocate(device_, Extent(counts, displacements), "staging", stream()));
  std::byte* const in = buffers[0].data();
  const std::byte* out = nullptr;
  const bool in_place =
      !send.empty() && std::cmp_equal(displacements.size(), size()) && send.data() == receive + displacements[rank()];
  if (in_place) {
    out = in + displacements[rank()];
    TESSERA_RETURN_IF_ERROR(
        CopyAsync(in + displacements[rank()], send.data(), static_cast<int64_t>(send.size()), stream()));
  } else {
    TESSERA_ASSIGN_OR_RETURN(buffers[1], Stage(send, stream()));
    out = buffers[1].data();
  }
  TESSERA_RETURN_IF_ERROR(collectives_->AllGatherV({out, send.size()}, in, counts, displacements, stream()));
  std::vector<Block> blocks;
  for (int r = 0; r < size(); ++r) {
    if (counts[r] > 0) blocks.push_back({receive + displacements[r], in + displacements[r], counts[r]});
  }
  return Finish(std::move(buffers), std::move(blocks));
}

StatusOr<Request> StagedCommunicator::AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                                                std::span<const int64_t> send_displacements, std::byte* receive,
                                                std::span<const int64_t> receive_counts,
                                                std::span<const int64_t> receive_displacements) {
  std::vector<DeviceBuffer> buffers(2);
  const auto sent = static_cast<size_t>(Extent(send_counts, send_displacements));
  TESSERA_ASSIGN_OR_RETURN(buffers[0], Stage({send, sent}, stream()));
  TESSERA_ASSIGN_OR_RETURN(
      buffers[1], DeviceBuffer::Allocate(device_, Extent(receive_counts, receive_displacements), "staging", stream()));
  const std::byte* const in = buffers[1].data();
  TESSERA_RETURN_IF_ERROR(collectives_->AllToAllV(buffers[0].data(), send_counts, send_displacements, buffers[1].data(),
                                                  receive_counts, receive_displacements, stream()));
  std::vector<Block> blocks;
  for (int r = 0; r < size(); ++r) {
    if (receive_counts[r] == 0) continue;
    blocks.push_back({receive + receive_displacements[r], in + receive_displacements[r], receive_counts[r]});
  }
  return Finish(std::move(buffers), std::move(blocks));
}

StatusOr<Request> StagedCommunicator::ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                                       std::span<const int64_t> counts) {
  std::vector<DeviceBuffer> buffers(2);
  TESSERA_ASSIGN_OR_RETURN(buffers[0], Stage(std::as_bytes(send), stream()));
  auto* const out = reinterpret_cast<float*>(buffers[0].data());
  float* in = nullptr;
  // In place stays in place.
  if (receive.data() >= send.data() && receive.data() < send.data() + send.size()) {
    in = out + (receive.data() - send.data());
  } else {
    TESSERA_ASSIGN_OR_RETURN(
        buffers[1], DeviceBuffer::Allocate(device_, static_cast<int64_t>(receive.size_bytes()), "staging", stream()));
    in = reinterpret_cast<float*>(buffers[1].data());
  }
  TESSERA_RETURN_IF_ERROR(collectives_->ReduceScatterSum({out, send.size()}, {in, receive.size()}, counts, stream()));
  return Finish(std::move(buffers),
                {{reinterpret_cast<std::byte*>(receive.data()), reinterpret_cast<const std::byte*>(in),
                  static_cast<int64_t>(receive.size_bytes())}});
}

StatusOr<Request> StagedCommunicator::AllReduceSum(std::span<const float> send, std::span<float> receive) {
  std::vector<DeviceBuffer> buffers(2);
  TESSERA_ASSIGN_OR_RETURN(buffers[0], Stage(std::as_bytes(send), stream()));
  auto* const out = reinterpret_cast<float*>(buffers[0].data());
  float* in = out;
  if (receive.data() != send.data()) {
    TESSERA_ASSIGN_OR_RETURN(
        buffers[1], DeviceBuffer::Allocate(device_, static_cast<int64_t>(receive.size_bytes()), "staging", stream()));
    in = reinterpret_cast<float*>(buffers[1].data());
  }
  TESSERA_RETURN_IF_ERROR(collectives_->AllReduceSum({out, send.size()}, {in, receive.size()}, stream()));
  return Finish(std::move(buffers),
                {{reinterpret_cast<std::byte*>(receive.data()), reinterpret_cast<const std::byte*>(in),
                  static_cast<int64_t>(receive.size_bytes())}});
}

StatusOr<Request> StagedCommunicator::Broadcast(Bytes data, int root) {
  std::vector<DeviceBuffer> buffers(1);
  TESSERA_ASSIGN_OR_RETURN(buffers[0], Stage(data, stream()));
  std::byte* const staged = buffers[0].data();
  TESSERA_RETURN_IF_ERROR(collectives_->Broadcast({staged, data.size()}, root, stream()));
  return Finish(std::move(buffers), {{data.data(), staged, static_cast<int64_t>(data.size())}});
}

StatusOr<Request> StagedCommunicator::Barrier() {
  TESSERA_ASSIGN_OR_RETURN(Request request, control_->Barrier());
  return Drive([held = std::make_shared<Request>(std::move(request))] { return held->Test(); });
}

StatusOr<std::unique_ptr<Communicator>> StagedCommunicator::Split(int color, int key) {
  TESSERA_ASSIGN_OR_RETURN(auto group, control_->Split(color, key));
  if (group == nullptr) return std::unique_ptr<Communicator>();
  return Make(std::move(group), device_);
}

Traffic StagedCommunicator::traffic() const {
  Traffic sum = collectives_->traffic();
  sum.bytes_sent += messages_.bytes_sent;
  sum.bytes_received += messages_.bytes_received;
  sum.messages_sent += messages_.messages_sent;
  sum.messages_received += messages_.messages_received;
  return sum;
}

void StagedCommunicator::ResetTraffic() {
  collectives_->ResetTraffic();
  messages_ = {};
}

}  // namespace tessera::testing
