// Counters: equal to the closed forms, and to those of a dry run of the same program.
#include "collectives/dryrun/communicator.h"
#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

constexpr int64_t kElements = 1003;
int64_t GatherCount(int r) {
  return r % 3 == 1 ? 0 : 100 * (r + 1);
}
int64_t ExchangeCount(int from, int to) {
  return (from + 2 * to) % 3 * 50;
}

template <typename Count>
std::vector<int64_t> PerRank(int size, Count count) {
  std::vector<int64_t> counts(size);
  for (int r = 0; r < size; ++r) counts[r] = count(r);
  return counts;
}

std::vector<int64_t> Slots(int size) {
  return PerRank(size, [](int r) { return 2000 * r; });
}

// One of everything; also in a group of the ranks of equal parity, whose traffic goes to `group_traffic`.
Status OneOfEverything(Communicator& comm, Traffic& group_traffic) {
  const int p = comm.size();
  const int me = comm.rank();
  std::vector<std::byte> out(2000 * p), in(2000 * p), ring(77);
  std::vector<float> floats(kElements), sums(kElements);

  TESSERA_ASSIGN_OR_RETURN(Request receive, comm.Receive(ring, (me + p - 1) % p, 0));
  TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Send(ConstBytes(out).first(77), (me + 1) % p, 0), "ring"));
  TESSERA_RETURN_IF_ERROR(Wait(comm, receive, "ring"));
  TESSERA_RETURN_IF_ERROR(Finish(
      comm, comm.AllGatherV(ConstBytes(out).first(GatherCount(me)), in.data(), PerRank(p, GatherCount), Slots(p)),
      "all-gather"));
  TESSERA_RETURN_IF_ERROR(
      Finish(comm,
             comm.AllToAllV(out.data(), PerRank(p, [&](int r) { return ExchangeCount(me, r); }), Slots(p), in.data(),
                            PerRank(p, [&](int r) { return ExchangeCount(r, me); }), Slots(p)),
             "all-to-all"));
  std::vector<int64_t> counts(p, 0);
  counts[p - 1] = kElements;
  TESSERA_RETURN_IF_ERROR(
      Finish(comm, comm.ReduceScatterSum(floats, std::span(sums).first(counts[me]), counts), "reduce-scatter"));
  TESSERA_RETURN_IF_ERROR(Finish(comm, comm.AllReduceSum(floats, sums), "all-reduce"));
  TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Broadcast(std::span(in).first(500), p - 1), "broadcast"));
  TESSERA_RETURN_IF_ERROR(Finish(comm, comm.Barrier(), "barrier"));

  TESSERA_ASSIGN_OR_RETURN(auto group, comm.Split(me % 2, me));
  TESSERA_RETURN_IF_ERROR(Finish(*group, group->Broadcast(std::span(in).first(40), 0), "broadcast in a group"));
  group_traffic = group->traffic();
  return absl::OkStatus();
}

Traffic Expected(int me, int p) {
  Traffic t;
  const auto send = [&](int64_t bytes) { t.bytes_sent += bytes, t.messages_sent += bytes > 0; };
  const auto receive = [&](int64_t bytes) { t.bytes_received += bytes, t.messages_received += bytes > 0; };
  const auto share = [&](int r) { return kElements / p + (r < kElements % p); };
  if (p > 1) send(77), receive(77);
  for (int r = 0; r < p; ++r) {
    if (r == me) continue;
    send(GatherCount(me)), receive(GatherCount(r));
    send(ExchangeCount(me, r)), receive(ExchangeCount(r, me));
    send(r == p - 1 ? 4 * kElements : 0), receive(me == p - 1 ? 4 * kElements : 0);
    send(4 * share(r)), receive(4 * share(me));
    send(4 * share(me)), receive(4 * share(r));
    send(me == p - 1 ? 500 : 0), receive(r == p - 1 ? 500 : 0);
  }
  return t;
}

TEST_P(Conformance, TrafficEqualsFormulaAndDryRun) {
  Run([](Communicator& comm) -> Status {
    const int me = comm.rank();
    Traffic group_traffic, dry_group_traffic;
    TESSERA_RETURN_IF_ERROR(OneOfEverything(comm, group_traffic));
    EXPECT_EQ(comm.traffic(), Expected(me, comm.size()));
    const int group_size = (comm.size() + 1 - me % 2) / 2;
    EXPECT_EQ(group_traffic.bytes_sent, me < 2 ? 40 * (group_size - 1) : 0);
    EXPECT_EQ(group_traffic.bytes_received, me < 2 ? 0 : 40);

    TESSERA_ASSIGN_OR_RETURN(auto dry, MakeDryRunCommunicator(me, comm.size(), [](int world_rank, int) {
                               return DryRunSplit{world_rank % 2, world_rank};
                             }));
    TESSERA_RETURN_IF_ERROR(OneOfEverything(*dry, dry_group_traffic));
    EXPECT_EQ(comm.traffic(), dry->traffic());
    EXPECT_EQ(group_traffic, dry_group_traffic);

    comm.ResetTraffic();
    EXPECT_EQ(comm.traffic(), Traffic{});
    return absl::OkStatus();
  });
}

}  // namespace

}  // namespace tessera::testing
