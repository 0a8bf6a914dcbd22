#include "runtime/engine/cuda/executor.h"

#include <algorithm>
#include <tuple>

#include "runtime/device/cuda/range.h"
#include "runtime/engine/cuda/regions.h"

namespace tessera {
namespace {

// Both ends of a message must agree on its place among the messages between them in a round. Messages of exchanges come
// after point-to-point ones, by the members of their group; all members start the exchanges of a group in the same
// order.
void SortForMatching(const RankProgram& program, std::vector<StepId>& steps) {
  static const std::vector<int> kNoGroup;
  const auto key = [&](StepId id) {
    const auto* exchange = std::get_if<ExchangeStep>(&program.steps[id].body);
    return std::tuple(exchange != nullptr, exchange == nullptr ? kNoGroup : program.groups[exchange->group], id);
  };
  std::ranges::sort(steps, {}, key);
}

// One side's bytes for a peer: in place they start at its first region, staged they follow each other in list order.
template <typename Visit>
void ForEachBlock(const std::vector<ExchangePart>& parts, SlotId staging, int rank, const SlotTable& slots,
                  Visit visit) {
  int64_t staged = 0;
  for (auto part = parts.begin(); part != parts.end();) {
    const int peer = part->peer;
    std::byte* const data =
        staging == kNone || peer == rank ? slots.RegionData(part->region) : slots.data(staging) + staged;
    int64_t bytes = 0;
    for (; part != parts.end() && part->peer == peer; ++part) bytes += slots.RegionBytes(part->region);
    if (peer == rank) continue;
    staged += bytes;
    visit(peer, data, bytes);
  }
}

}  // namespace

StatusOr<CudaExecutor> CudaExecutor::Create(const RankProgram& program, const std::vector<int>& rounds,
                                            const CudaDevice& device, StreamCommunicator& data) {
  CudaExecutor executor(program, device, data);
  TESSERA_ASSIGN_OR_RETURN(executor.actions_, MakeStreamSchedule(program, rounds));
  TESSERA_ASSIGN_OR_RETURN(executor.messages_, CudaStream::Create(device, CudaStream::Priority::kHigh));
  for (StreamAction& action : executor.actions_) {
    SortForMatching(program, action.steps);
    const StepId first = action.steps.front();
    executor.names_.push_back(absl::StrCat("step ", first, " ", std::string(KindName(program.steps[first].body))));
  }
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Marks> marks, executor.FreeMarks());
  executor.GiveBack(std::move(marks));
  return executor;
}

StatusOr<std::unique_ptr<CudaExecutor::Marks>> CudaExecutor::FreeMarks() {
  if (!free_.empty()) {
    std::unique_ptr<Marks> marks = std::move(free_.back());
    free_.pop_back();
    marks->position = 0;
    return marks;
  }
  auto marks = std::make_unique<Marks>();
  TESSERA_ASSIGN_OR_RETURN(marks->start, CudaEvent::Create(device_));
  TESSERA_ASSIGN_OR_RETURN(marks->finish, CudaEvent::Create(device_));
  for (size_t i = 0; i < actions_.size(); ++i) {
    TESSERA_ASSIGN_OR_RETURN(marks->ends.emplace_back(), CudaEvent::Create(device_));
  }
  return marks;
}

Status CudaExecutor::Start(StepId step, const SlotTable& slots, Round& round) const {
  const StepBody& body = program_->steps[step].body;
  if (const auto* send = std::get_if<SendStep>(&body)) {
    round.sends.push_back({send->peer, send->tag, slots.RegionData(send->region), slots.RegionBytes(send->region)});
    return absl::OkStatus();
  }
  if (const auto* receive = std::get_if<ReceiveStep>(&body)) {
    round.receives.push_back(
        {receive->peer, receive->tag, slots.RegionData(receive->region), slots.RegionBytes(receive->region)});
    return absl::OkStatus();
  }
  const auto& exchange = std::get<ExchangeStep>(body);
  const int rank = program_->rank;
  auto own = exchange.receives.begin();
  std::byte* packed = exchange.send_staging == kNone ? nullptr : slots.data(exchange.send_staging);
  for (const ExchangePart& part : exchange.sends) {
    if (part.peer == rank) {
      own = std::find_if(own, exchange.receives.end(), [&](const ExchangePart& p) { return p.peer == rank; });
      TESSERA_RETURN_IF_ERROR(CopyRegionAsync(slots, part.region, (own++)->region, messages_.handle()));
    } else if (packed != nullptr) {
      TESSERA_RETURN_IF_ERROR(PackAsync(slots, part.region, packed, messages_.handle()));
      packed += slots.RegionBytes(part.region);
    }
  }
  const auto order = int64_t{kTagLimit} + static_cast<int64_t>(round.sends.size() + round.receives.size());
  ForEachBlock(exchange.sends, exchange.send_staging, rank, slots, [&](int peer, std::byte* data, int64_t bytes) {
    round.sends.push_back({peer, order, data, bytes});
  });
  ForEachBlock(exchange.receives, exchange.receive_staging, rank, slots, [&](int peer, std::byte* data, int64_t bytes) {
    round.receives.push_back({peer, order, data, bytes});
  });
  return absl::OkStatus();
}

Status CudaExecutor::Finish(StepId step, const SlotTable& slots) const {
  const auto* exchange = std::get_if<ExchangeStep>(&program_->steps[step].body);
  if (exchange == nullptr || exchange->receive_staging == kNone) return absl::OkStatus();
  const std::byte* packed = slots.data(exchange->receive_staging);
  for (const ExchangePart& part : exchange->receives) {
    if (part.peer == program_->rank) continue;
    TESSERA_RETURN_IF_ERROR(UnpackAsync(slots, part.region, packed, messages_.handle()));
    packed += slots.RegionBytes(part.region);
  }
  return absl::OkStatus();
}

Status CudaExecutor::SubmitRound(const StreamAction& action, const SlotTable& slots) {
  Round round;
  for (const StepId step : action.steps) TESSERA_RETURN_IF_ERROR(Start(step, slots, round));
  for (auto* side : {&round.sends, &round.receives}) {
    std::erase_if(*side, [](const Message& message) { return message.bytes == 0; });
    std::ranges::stable_sort(*side, {}, [](const Message& message) { return std::pair(message.peer, message.order); });
  }
  std::vector<SendMessage> sends;
  std::vector<ReceiveMessage> receives;
  for (const Message& m : round.sends) sends.push_back({m.peer, m.data, m.bytes});
  for (const Message& m : round.receives) receives.push_back({m.peer, m.data, m.bytes});
  TESSERA_RETURN_IF_ERROR(data_->Exchange(sends, receives, messages_.handle()));
  for (const StepId step : action.steps) TESSERA_RETURN_IF_ERROR(Finish(step, slots));
  return absl::OkStatus();
}

Status CudaExecutor::Submit(const SlotTable& slots, const CudaStepComputer& computer, CUstream_st* stream) {
  CUstream_st* const messages = messages_.handle();
  TESSERA_ASSIGN_OR_RETURN(current_, FreeMarks());
  std::vector<CudaEvent>& ends = current_->ends;
  TESSERA_RETURN_IF_ERROR(current_->start.Record(stream));
  TESSERA_RETURN_IF_ERROR(current_->start.MakeWait(messages));
  size_t last_round = actions_.size();
  for (size_t i = 0; i < actions_.size(); ++i) {
    const StreamAction& action = actions_[i];
    const ProfilerRange range(names_[i].c_str());
    submitting_ = action.steps.front();
    CUstream_st* const own = action.communicates ? messages : stream;
    if (action.wait_for != kNone) TESSERA_RETURN_IF_ERROR(ends[action.wait_for].MakeWait(own));
    if (action.communicates) {
      TESSERA_RETURN_IF_ERROR(SubmitRound(action, slots));
      last_round = i;
    } else {
      TESSERA_RETURN_IF_ERROR(computer.Launch(action.steps[0], slots, stream));
    }
    TESSERA_RETURN_IF_ERROR(ends[i].Record(own));
  }
  // The caller's tensors are read and written by rounds too.
  if (last_round < actions_.size()) TESSERA_RETURN_IF_ERROR(ends[last_round].MakeWait(stream));
  submitting_ = kNone;
  return absl::OkStatus();
}

StatusOr<CudaExecutor::Position> CudaExecutor::Where(Marks& marks) const {
  for (; marks.position < actions_.size(); ++marks.position) {
    TESSERA_ASSIGN_OR_RETURN(const bool over, marks.ends[marks.position].Done());
    if (over) continue;
    const StreamAction& action = actions_[marks.position];
    TESSERA_ASSIGN_OR_RETURN(const bool begun, marks.start.Done());
    return Position{false, action.communicates || !begun, action.steps.front()};
  }
  return Position{};
}

}  // namespace tessera
