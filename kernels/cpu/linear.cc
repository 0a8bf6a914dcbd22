// Matrix products by oneDNN. Weights are packed into the layout its kernels prefer for few rows, which all row counts
// then share: at 2048 x 3072 and one row, packed weights run 2.3 times as fast as plain ones.
#include "kernels/linear.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <utility>

namespace tessera {
namespace {

using Dims = dnnl::memory::dims;

// More rows than this are worked off in passes, so that scratch and the number of primitives stay bounded.
constexpr int64_t kMaxRows = 1024;

// The row count of the primitive that serves `rows` rows. Every decode step has another number of rows, and a primitive
// costs 0.1 ms and more to make: eight sizes per octave bound their number at the price of at most an eighth more rows.
int64_t Bucket(int64_t rows) {
  const int shift = std::max(0, static_cast<int>(std::bit_width(static_cast<uint64_t>(rows))) - 4);
  const int64_t step = int64_t{1} << shift;
  return (rows + step - 1) / step * step;
}

dnnl::memory::data_type TypeOf(DType dtype) {
  return dtype == DType::kBFloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// How many threads a team of this thread is certain to get. oneDNN shares its work among as many as it asked for, so a
// smaller team (OMP_THREAD_LIMIT, OMP_DYNAMIC, a parallel region around the call) would leave part of it undone.
int CertainThreads(int wanted) {
  const bool nested = omp_in_parallel() != 0 && omp_get_active_level() >= omp_get_max_active_levels();
  return nested || omp_get_dynamic() != 0 ? 1 : std::min(wanted, omp_get_thread_limit());
}

// oneDNN takes its number of threads from OpenMP, both when a primitive is made and when it runs.
class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ScopedThreads() { omp_set_num_threads(before_); }
  ScopedThreads(const ScopedThreads&) = delete;
  ScopedThreads& operator=(const ScopedThreads&) = delete;

 private:
  int before_;
};

// The library's exceptions end here.
template <class Body>
Status Guard(std::string_view what, const Body& body) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    const std::string text = absl::StrCat("linear: oneDNN cannot ", std::string(what), ": ", error.message);
    return error.status == dnnl_unimplemented ? absl::UnimplementedError(text) : absl::InternalError(text);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat("linear: no memory to ", std::string(what)));
  }
}

// One matrix product [rows, in] x [in, out] -> [rows, out], all dense but the weights.
struct Product {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul primitive;
};

dnnl::matmul::primitive_desc Describe(int64_t rows, int64_t in, int64_t out, DType compute,
                                      const dnnl::memory::desc& weights) {
  const dnnl::memory::desc source({rows, in}, TypeOf(compute), Dims{in, 1});
  const dnnl::memory::desc destination({rows, out}, dnnl::memory::data_type::f32, Dims{out, 1});
  // The scratchpad belongs to the call: the default shares one between threads that run the same primitive.
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {dnnl::matmul::desc(source, weights, destination), attributes, Engine()};
}

void Round(const float* from, int64_t count, DType dtype, std::byte* to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  } else {
    uint16_t* const halves = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < count; ++i) halves[i] = BFloat16FromFloat(from[i]);
  }
}

// What one thread needs beside the primitive; sized for its largest product.
struct Scratch {
  std::vector<std::byte> input;
  std::vector<float> output;
};

}  // namespace

struct Linear::State {
  int batch = 0;
  int64_t in = 0;
  int64_t out = 0;
  DType compute = DType::kFloat32;
  dnnl::memory::desc packed;                                                           // of one matrix
  std::vector<dnnl::memory> weights;                                                   // [batch]
  mutable std::mutex mutex;                                                            // of `products`
  mutable std::map<std::pair<int64_t, int>, std::unique_ptr<const Product>> products;  // by rows and threads

  const Product& ProductFor(int64_t rows, int threads) const;
  void Pack(const MatrixView& matrix, bool transposed);
  void ApplyOne(const Product& product, int entry, const float* x, int64_t rows, int64_t x_row_stride, float* y,
                int threads, Scratch* scratch) const;
  void ApplyPass(const float* x, int64_t rows, int64_t x_row_stride, float* y, int threads) const;
};

const Product& Linear::State::ProductFor(int64_t rows, int threads) const {
  const std::lock_guard lock(mutex);
  std::unique_ptr<const Product>& product = products[{rows, threads}];
  if (product == nullptr) {
    const ScopedThreads scope(threads);
    const auto description = Describe(rows, in, out, compute, packed);
    product = std::make_unique<Product>(Product{description, dnnl::matmul(description)});
  }
  return *product;
}

void Linear::State::Pack(const MatrixView& matrix, bool transposed) {
  const Dims strides = transposed ? Dims{out, 1} : Dims{1, in};
  std::vector<float> floats(static_cast<size_t>(in * out));
  for (int64_t i = 0; i < in * out; ++i) floats[i] = LoadAsFloat(matrix.data, matrix.dtype, i);
  dnnl::memory given({{in, out}, dnnl::memory::data_type::f32, strides}, Engine(), floats.data());
  dnnl::memory result(packed, Engine());
  dnnl::stream stream(Engine());
  dnnl::reorder(given, result).execute(stream, given, result);
  stream.wait();
  weights.push_back(std::move(result));
}

void Linear::State::ApplyOne(const Product& product, int entry, const float* x, int64_t rows, int64_t x_row_stride,
                             float* y, int threads, Scratch* scratch) const {
  const int64_t bucket = product.description.src_desc().dims()[0];
  const bool read_in_place = compute == DType::kFloat32 && rows == bucket && x_row_stride == in;
  const bool write_in_place = rows == bucket && batch == 1;
  const float* const input = x + entry * in;
  if (!read_in_place) {
    const size_t row_bytes = static_cast<size_t>(in) * SizeInBytes(compute);
    scratch->input.resize(static_cast<size_t>(bucket) * row_bytes);
    std::byte* const rounded = scratch->input.data();
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 16)
    for (int64_t r = 0; r < rows; ++r) Round(input + r * x_row_stride, in, compute, rounded + r * row_bytes);
    std::memset(rounded + rows * row_bytes, 0, static_cast<size_t>(bucket - rows) * row_bytes);
  }
  if (!write_in_place) scratch->output.resize(static_cast<size_t>(bucket * out));
  void* const source = read_in_place ? const_cast<float*>(input) : static_cast<void*>(scratch->input.data());
  float* const destination = write_in_place ? y : scratch->output.data();

  const ScopedThreads scope(threads);
  dnnl::stream stream(Engine());
  product.primitive.execute(stream,
                            {{DNNL_ARG_SRC, dnnl::memory(product.description.src_desc(), Engine(), source)},
                             {DNNL_ARG_WEIGHTS, weights[entry]},
                             {DNNL_ARG_DST, dnnl::memory(product.description.dst_desc(), Engine(), destination)},
                             {DNNL_ARG_SCRATCHPAD, dnnl::memory(product.description.scratchpad_desc(), Engine())}});
  stream.wait();
  if (write_in_place) return;
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(y + (r * batch + entry) * out, destination + r * out, static_cast<size_t>(out) * sizeof(float));
  }
}

void Linear::State::ApplyPass(const float* x, int64_t rows, int64_t x_row_stride, float* y, int threads) const {
  if (batch == 1) {
    Scratch scratch;
    ApplyOne(ProductFor(Bucket(rows), threads), 0, x, rows, x_row_stride, y, threads, &scratch);
    return;
  }
  // Entries are small (a head's latent projection) and many: threads take whole ones.
  const Product& product = ProductFor(Bucket(rows), 1);
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
#pragma omp parallel num_threads(std::min(threads, batch))
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int entry = 0; entry < batch; ++entry) {
      if (failed) continue;
      try {
        ApplyOne(product, entry, x, rows, x_row_stride, y, 1, &scratch);
      } catch (...) {  // must not leave the parallel region
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
  }
  if (failure != nullptr) std::rethrow_exception(failure);
}

StatusOr<Linear> Linear::Create(const std::vector<MatrixView>& weights, DType compute, bool transposed) {
  if (compute == DType::kFloat16) return absl::InvalidArgumentError("linear: products are computed in fp32 or bf16");
  if (weights.empty()) return absl::InvalidArgumentError("linear: there is no weight matrix");
  const MatrixView& first = weights.front();
  if (first.rows < 1 || first.columns < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("linear: a weight matrix is [", first.rows, ", ", first.columns, "]"));
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].empty()) return absl::InvalidArgumentError(absl::StrCat("linear: weight matrix ", i, " is missing"));
    if (weights[i].rows != first.rows || weights[i].columns != first.columns) {
      return absl::InvalidArgumentError(absl::StrCat("linear: weight matrix ", i, " is [", weights[i].rows, ", ",
                                                     weights[i].columns, "], the first one [", first.rows, ", ",
                                                     first.columns, "]"));
    }
  }
  auto state = std::make_unique<State>();
  state->batch = static_cast<int>(weights.size());
  state->in = transposed ? first.rows : first.columns;
  state->out = transposed ? first.columns : first.rows;
  state->compute = compute;
  TESSERA_RETURN_IF_ERROR(Guard("pack weights", [&]() -> Status {
    const ScopedThreads scope(1);
    const dnnl::memory::desc any({state->in, state->out}, TypeOf(compute), dnnl::memory::format_tag::any);
    const auto description = Describe(1, state->in, state->out, compute, any);
    const std::string implementation = description.impl_info_str();
    if (compute == DType::kBFloat16 && implementation.rfind("ref", 0) == 0) {
      return absl::UnimplementedError(
          absl::StrCat("linear: this processor has no fast bf16 product; oneDNN offers only ", implementation));
    }
    state->packed = description.weights_desc();
    for (const MatrixView& matrix : weights) state->Pack(matrix, transposed);
    return absl::OkStatus();
  }));
  return Linear(std::move(state));
}

Linear::Linear(std::unique_ptr<State> state) : state_(std::move(state)) {}
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

int Linear::batch() const {
  return state_->batch;
}
int64_t Linear::in() const {
  return state_->in;
}
int64_t Linear::out() const {
  return state_->out;
}
int64_t Linear::weight_bytes() const {
  return static_cast<int64_t>(state_->packed.get_size()) * state_->batch;
}

Status Linear::Apply(const float* x, int64_t rows, int64_t x_row_stride, float* y, int threads) const {
  const State& state = *state_;
  if (rows < 0) return absl::InvalidArgumentError(absl::StrCat("linear: there are ", rows, " rows"));
  if (threads < 1) return absl::InvalidArgumentError("linear: threads must be at least 1");
  threads = CertainThreads(threads);
  if (rows > 1 && x_row_stride < state.batch * state.in) {
    return absl::InvalidArgumentError(
        absl::StrCat("linear: input rows are ", x_row_stride, " elements apart, but have ", state.batch * state.in));
  }
  return Guard("multiply", [&]() -> Status {
    for (int64_t row = 0; row < rows; row += kMaxRows) {
      state.ApplyPass(x + row * x_row_stride, std::min(kMaxRows, rows - row), x_row_stride,
                      y + row * state.batch * state.out, threads);
    }
    return absl::OkStatus();
  });
}

}  // namespace tessera
