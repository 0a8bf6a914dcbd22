// What `bench decode` says of each method: a table for people, a record per row for machines.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/lm/decode_subject.h"
#include "launcher/table.h"

namespace tessera::launcher {

// The median step, by its slowest rank; and what caches hold.
struct DecodeRow {
  std::string method;
  int ranks = 1;
  bool approximate = false;
  std::string kernel;
  DecodeCost slowest;                                       // of the median step
  int64_t bytes_received = 0;                               // all ranks
  std::optional<int64_t> bytes_predicted;                   // where the price model takes the step
  double attention_flops = 0;                               // all ranks
  double read_bytes_per_second = 0;                         // of the slowest rank while it attends
  std::vector<int64_t> cache_bytes_per_token, cache_bytes;  // per rank
  std::optional<double> error;                              // relative, against fp64
  bool accurate = true;

  bool bytes_match() const { return !bytes_predicted || *bytes_predicted == bytes_received; }
  bool ok() const { return accurate && bytes_match(); }
};

// What an exact method's error may be: at most twice that of one rank alone, and whatever that is, no more than
// roundings explain. A wrong kernel is off by about 1.
bool Accurate(const DecodeRow& row, DType dtype, std::optional<double> plain_error);

class DecodeReport {
 public:
  // `load` outlives this. `device`: the GPU of rank 0; empty = CPU.
  DecodeReport(const DecodeLoad& load, std::string device) : load_(load), device_(std::move(device)) {}

  void Add(const DecodeRow& row);
  void AddRefusal(const std::string& method, const Status& why);
  void Print() const;
  const std::string& records() const { return records_; }  // one line of JSON per row

 private:
  std::string ToJsonLine(const DecodeRow& row) const;

  const DecodeLoad& load_;
  const std::string device_;
  double head_seconds_ = 0;
  Table table_{{"method", "ranks", "step", "tokens/s", "vs head", "attention", "projections", "sums",
                "cache B/token/layer", "cache per rank", "bytes moved", "predicted", "GB/s", "TFLOP/s", "rel error",
                "check"}};
  std::string records_;
};

}  // namespace tessera::launcher
