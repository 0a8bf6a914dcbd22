// Attention by oneDNN's primitives: scores, softmax, output, each over whole matrices, as its graph API does on CPUs of
// the releases up to 3.14. Written against oneDNN 2.6 (Debian's libdnnl-dev).
//   onednn HEADS WIDTH TOKENS bf16|fp32 RUNS     prints one line of seconds per run, then the error
// A mask would take a pass of its own over the scores, so only full attention is compared. Scores and weights are in
// the dtype of the tensors, which is the faster and the less accurate choice.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <random>
#include <string>
#include <vector>

namespace {

using dnnl::memory;
using Dims = memory::dims;

// A tensor [heads, rows, columns] with strides, in fp32 outside and `type` inside.
memory Make(const dnnl::engine& engine, const Dims& dims, const Dims& strides, memory::data_type type) {
  return memory({dims, type, strides}, engine);
}

void Fill(const memory& to, const std::vector<float>& from, bool bf16) {
  auto* const data = static_cast<char*>(to.get_data_handle());
  for (size_t i = 0; i < from.size(); ++i) {
    if (bf16) {
      uint32_t bits;
      std::memcpy(&bits, &from[i], 4);
      const auto half = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      std::memcpy(data + 2 * i, &half, 2);
    } else {
      std::memcpy(data + 4 * i, &from[i], 4);
    }
  }
}

float Get(const memory& from, size_t i, bool bf16) {
  const auto* const data = static_cast<const char*>(from.get_data_handle());
  uint32_t bits = 0;
  if (bf16) {
    std::memcpy(reinterpret_cast<char*>(&bits) + 2, data + 2 * i, 2);
  } else {
    std::memcpy(&bits, data + 4 * i, 4);
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

int Run(int64_t heads, int64_t width, int64_t tokens, bool bf16, int runs) {
  const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const Dims rows{heads, tokens, width}, row_strides{tokens * width, width, 1};
  const Dims square{heads, tokens, tokens}, square_strides{tokens * tokens, tokens, 1};
  const memory query = Make(engine, rows, row_strides, type), key = Make(engine, rows, row_strides, type);
  const memory value = Make(engine, rows, row_strides, type), output = Make(engine, rows, row_strides, type);
  const memory scores = Make(engine, square, square_strides, type);
  // The keys once more, read as [heads, width, tokens].
  const memory::desc transposed({heads, width, tokens}, type, Dims{tokens * width, 1, width});
  const memory columns(transposed, engine, key.get_data_handle());

  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(heads * tokens * width));
  for (const memory* tensor : {&query, &key, &value}) {
    for (float& number : numbers) number = normal(random);
    Fill(*tensor, numbers, bf16);
  }

  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(width)));
  dnnl::primitive_attr attributes;
  attributes.set_output_scales(0, {scale});
  const dnnl::matmul multiply_keys({{query.get_desc(), transposed, scores.get_desc()}, attributes, engine});
  const dnnl::softmax_forward softmax({{dnnl::prop_kind::forward_inference, scores.get_desc(), 2}, engine});
  const dnnl::matmul multiply_values({{scores.get_desc(), value.get_desc(), output.get_desc()}, engine});
  for (int run = 0; run <= runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    multiply_keys.execute(stream, {{DNNL_ARG_SRC, query}, {DNNL_ARG_WEIGHTS, columns}, {DNNL_ARG_DST, scores}});
    softmax.execute(stream, {{DNNL_ARG_SRC, scores}, {DNNL_ARG_DST, scores}});
    multiply_values.execute(stream, {{DNNL_ARG_SRC, scores}, {DNNL_ARG_WEIGHTS, value}, {DNNL_ARG_DST, output}});
    stream.wait();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (run > 0) std::printf("%.6f\n", seconds.count());  // the first one makes what the others find made
  }

  // The last row of every head in fp64.
  double squares = 0, errors = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const auto at = [&](int64_t row, int64_t i) { return static_cast<size_t>((head * tokens + row) * width + i); };
    std::vector<double> weights(static_cast<size_t>(tokens)), exact(static_cast<size_t>(width));
    double sum = 0;
    for (int64_t k = 0; k < tokens; ++k) {
      double dot = 0;
      for (int64_t i = 0; i < width; ++i) dot += 1.0 * Get(query, at(tokens - 1, i), bf16) * Get(key, at(k, i), bf16);
      sum += weights[k] = std::exp(dot * scale);
    }
    for (int64_t k = 0; k < tokens; ++k) {
      for (int64_t i = 0; i < width; ++i) exact[i] += weights[k] / sum * Get(value, at(k, i), bf16);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double error = Get(output, at(tokens - 1, i), bf16) - exact[i];
      squares += exact[i] * exact[i];
      errors += error * error;
    }
  }
  const double error = std::sqrt(errors / squares);
  std::printf("error %.2e\n", error);
  return error < (bf16 ? 3e-2 : 1e-5) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6 || (std::string(argv[4]) != "bf16" && std::string(argv[4]) != "fp32")) {
    std::fprintf(stderr, "usage: onednn HEADS WIDTH TOKENS bf16|fp32 RUNS\n");
    return 2;
  }
  try {
    return Run(std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), std::string(argv[4]) == "bf16",
               std::atoi(argv[5]));
  } catch (const dnnl::error& error) {
    std::fprintf(stderr, "oneDNN: %s\n", error.what());
    return 1;
  }
}
