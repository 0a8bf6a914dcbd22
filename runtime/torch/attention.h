// The differentiable operator.
#pragma once

#include <ATen/core/Tensor.h>
#include <tessera.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "communicator.h"
#include "plan.h"

namespace tessera_torch {

struct AttentionOptions {
  int threads = 1;
  bool backward = true;
  std::string kernel;  // empty: the fastest that serves the problem
};

struct Stats {
  double seconds = 0, compute_seconds = 0, exposed_seconds = 0;
  int64_t bytes_sent = 0, bytes_received = 0, slot_bytes = 0;
};

// A distributed attention of one plan. Calls of different layers may share it.
class Attention final : public Dependent, public std::enable_shared_from_this<Attention> {
 public:
  // Collective.
  static std::shared_ptr<Attention> Create(std::shared_ptr<Communicator> comm, std::shared_ptr<Plan> plan,
                                           const AttentionOptions& options);
  ~Attention() override { Close(); }

  // (output, lse) of this rank's rows, recorded for autograd; lse has no gradient. Undefined vectors are absent ones.
  // Collective, and so is the backward pass through it.
  std::pair<at::Tensor, at::Tensor> Apply(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                          const at::Tensor& alibi_slopes, const at::Tensor& sinks);

  // The two passes without autograd.
  void Forward(const tessera_forward_args& args);
  void Backward(const tessera_backward_args& args);

  const Plan& plan() const { return *plan_; }
  int rank() const { return comm_->rank(); }
  std::string kernel() const;
  Stats stats() const;
  void Close() override;

 private:
  Attention() = default;
  tessera_attention* handle() const;

  std::shared_ptr<Communicator> comm_;
  std::shared_ptr<Plan> plan_;
  bool backward_ = true;
  tessera_attention* attention_ = nullptr;
};

}  // namespace tessera_torch
