// Computes the steps of softmax attention, forward and backward. Internal to the engine.
#pragma once

#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "runtime/engine/attention.h"
#include "runtime/engine/step_computer.h"

namespace tessera {

class AttentionComputer final : public StepComputer {
 public:
  // All references outlive this.
  AttentionComputer(const Problem& problem, const AttentionKernel& kernel, int threads, const HeadVectors& vectors)
      : problem_(problem), kernel_(kernel), threads_(threads), vectors_(vectors) {}

  Status Compute(const StepBody& body, const SlotTable& slots, const std::atomic<bool>& cancelled) const override;

 private:
  Status Attend(const AttendStep& attend, const SlotTable& slots, const std::atomic<bool>& cancelled) const;
  Status AttendBackward(const AttendBackwardStep& attend, const SlotTable& slots,
                        const std::atomic<bool>& cancelled) const;
  void Finish(const FinishStep& finish, const SlotTable& slots) const;
  template <typename AttendStepOfPass, typename Args>
  void FillCommon(const AttendStepOfPass& step, const SlotTable& slots, const std::atomic<bool>& cancelled,
                  Args& args) const;

  const Problem& problem_;
  const AttentionKernel& kernel_;
  const int threads_;
  const HeadVectors& vectors_;
};

}  // namespace tessera
