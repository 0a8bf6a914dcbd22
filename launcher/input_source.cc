#include "launcher/input_source.h"

#include "runtime/base/counter_random.h"

namespace tessera::launcher {
namespace {

const char* TensorName(Operand operand) {
  switch (operand) {
    case Operand::kQuery:
      return "q";
    case Operand::kKey:
      return "k";
    case Operand::kValue:
      return "v";
    case Operand::kOutputGradient:
      return "dout";
  }
  return "?";
}

}  // namespace

StatusOr<Problem> FileInput::ShapeOfProblem() const {
  ConstTensorView shapes[3];
  std::string described[3];
  for (Operand operand : {Operand::kQuery, Operand::kKey, Operand::kValue}) {
    const int i = static_cast<int>(operand);
    TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, file_.Find(TensorName(operand)));
    described[i] = absl::StrCat("tensor \"", tensor->name, "\" is ", Describe(*tensor));
    if (tensor->shape.size() != 3) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": ", described[i], "; allowed: three axes [tokens, heads, width]"));
    }
    TESSERA_ASSIGN_OR_RETURN(shapes[i], file_.Shape(TensorName(operand)));
  }
  const auto& [query, key, value] = shapes;
  const auto disagree = [&](int a, int b, const char* rule) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": ", described[a], " but ", described[b], "; ", rule));
  };
  if (key.rows != value.rows) return disagree(1, 2, "k and v have equally many tokens");
  if (key.heads != value.heads) return disagree(1, 2, "k and v have equally many heads");
  if (query.width != key.width) return disagree(0, 1, "q and k have the same width");
  if (key.heads < 1 || query.heads % key.heads != 0) {
    return disagree(0, 1, "the heads of q are a multiple of the heads of k");
  }
  if (query.dtype != key.dtype) return disagree(0, 1, "q, k and v have one type");
  if (query.dtype != value.dtype) return disagree(0, 2, "q, k and v have one type");
  Problem problem;
  problem.query_tokens = query.rows;
  problem.key_tokens = key.rows;
  problem.query_heads = query.heads;
  problem.kv_heads = key.heads;
  problem.qk_width = query.width;
  problem.v_width = value.width;
  problem.dtype = query.dtype;
  return problem;
}

Status FileInput::Read(Operand operand, std::span<const Segment> segments, const TensorView& rows) const {
  return file_.ReadRows(TensorName(operand), segments, rows);
}

Status GeneratedInput::Read(Operand operand, std::span<const Segment> segments, const TensorView& rows) const {
  FillNormal(seed_, static_cast<uint8_t>(operand), segments, rows);
  return absl::OkStatus();
}

StatusOr<HostTensor> AllocateOperand(const Problem& problem, Operand operand, int64_t tokens) {
  const bool of_queries = operand == Operand::kQuery || operand == Operand::kOutputGradient;
  const int heads = of_queries ? problem.query_heads : problem.kv_heads;
  const int width = operand == Operand::kQuery || operand == Operand::kKey ? problem.qk_width : problem.v_width;
  return HostTensor::Allocate(problem.dtype, tokens, heads, width);
}

}  // namespace tessera::launcher
