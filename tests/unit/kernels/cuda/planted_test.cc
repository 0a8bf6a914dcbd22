// Takes the instructions that synchronise Hopper's kernels out of their PTX, one at a time: the virtual GPU finds each
// one's absence. So none of them is there for nothing, and the kernels' other tests would have noticed had one been
// forgotten. The kernels whose threads copy are left out: their order of copying implies some of the waits.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <regex>
#include <sstream>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/decode_params.h"
#include "kernels/cuda/sm90/attend_config.h"
#include "kernels/cuda/sm90/backward_config.h"
#include "kernels/cuda/sm90/decode_config.h"
#include "tests/virtual_gpu/ptx/ptx_runner.h"
#include "tests/virtual_gpu/ptx/tensor_map.h"

namespace tessera::testing {
namespace {

using vgpu::TensorMap;

// The lines of a PTX file, and which of them an entry's body spans.
struct Text {
  std::vector<std::string> lines;
  size_t begin = 0, end = 0;
  std::string entry;

  std::string Joined() const {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
  }
};

Text ReadEntry(const std::string& part_of_name) {
  std::ifstream file(TESSERA_PLANTED_PTX);
  Text text;
  for (std::string line; std::getline(file, line);) text.lines.push_back(line);
  const std::regex entry(R"(\.entry (\w+))");
  for (size_t i = 0; i < text.lines.size(); ++i) {
    std::smatch match;
    if (!std::regex_search(text.lines[i], match, entry)) continue;
    if (!text.entry.empty()) {
      text.end = i;
      return text;
    }
    if (match[1].str().find(part_of_name) == std::string::npos) continue;
    text.entry = match[1];
    text.begin = i;
  }
  text.end = text.lines.size();
  return text;
}

// One launch of a kernel, its memory included.
struct Case {
  vgpu::Device device;
  vgpu::Dim3 grid, block;
  uint32_t shared_bytes = 0;
  std::vector<std::byte> parameters;  // two structs, of which the second is aligned to 128 bytes

  template <typename Params, typename Maps>
  void Set(const Params& params, const Maps& maps) {
    parameters.resize((sizeof(Params) + 127) / 128 * 128 + sizeof(Maps));
    std::memcpy(parameters.data(), &params, sizeof(Params));
    std::memcpy(parameters.data() + parameters.size() - sizeof(Maps), &maps, sizeof(Maps));
  }
};

std::optional<vgpu::Fault> RunKernel(const Text& text, Case& test) {
  std::string error;
  const auto module = vgpu::Module::Parse(text.Joined(), &error);
  EXPECT_NE(module, nullptr) << error;
  vgpu::Launch launch;
  launch.kernel = module->Find(text.entry);
  EXPECT_NE(launch.kernel, nullptr);
  launch.grid = test.grid;
  launch.block = test.block;
  launch.dynamic_shared_bytes = test.shared_bytes;
  launch.parameters = test.parameters;
  EXPECT_EQ(Info(*launch.kernel).parameter_block_bytes, launch.parameters.size());
  return vgpu::Run(launch, test.device.memory(), nullptr);
}

uint16_t ToBf16(float value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

// [rows, heads, width] of small numbers, with a NaN in some rows.
std::vector<uint16_t> Elements(int64_t rows, int64_t row_elements, std::vector<int64_t> poisoned = {}) {
  std::vector<uint16_t> elements(rows * row_elements);
  for (size_t i = 0; i < elements.size(); ++i) elements[i] = ToBf16(static_cast<float>(i * 37 % 64) / 64.0f - 0.5f);
  for (int64_t row : poisoned) elements[row * row_elements + 5] = 0x7fc0;
  return elements;
}

TensorMap MapOf(const uint16_t* base, uint32_t width, uint32_t box_rows, std::initializer_list<uint32_t> extents,
                std::initializer_list<uint64_t> strides) {
  TensorMap map;
  map.rank = static_cast<uint8_t>(1 + extents.size());
  map.element_bytes = 2;
  map.swizzle = vgpu::Swizzle::k128;
  map.base = reinterpret_cast<uint64_t>(base);
  map.extent[0] = width;
  std::copy(extents.begin(), extents.end(), map.extent + 1);
  std::copy(strides.begin(), strides.end(), map.stride_bytes);
  std::fill(map.box, map.box + TensorMap::kMaxRank, 1);
  map.box[0] = 64;
  map.box[1] = box_rows;
  return map;
}

constexpr int kWidth = 64;

// Problems that together go every way through a kernel.
enum class Kind { kPoisoned, kTransformed };

// Query rows [0, 128) with tokens from 500 on and key rows [0, kRows): a run that all meet, and one through a
// diagonal; the last piece of each ends early.
constexpr int64_t kQueries = 128, kRows = 5 * 128 - 40, kWholeRows = 2 * 128 - 30;

struct Lists {
  cuda::DeviceWork work;
  explicit Lists(vgpu::Device& device, bool turned) {
    const int32_t own = static_cast<int32_t>(turned ? kWholeRows / 2 : kQueries);
    const int32_t others = static_cast<int32_t>(turned ? kQueries * 3 - 20 : kRows), whole = turned ? 100 : kWholeRows;
    work.blocks = device.Buffer(std::vector<cuda::RowBlock>{{0, own, 0, 2}});
    work.runs = device.Buffer(
        std::vector<cuda::Run>{{0, whole, 0, 1, 500, 1, 0, 0}, {whole, others - whole, whole, 1, 500, 1, 0, 1}});
    work.band_numbers = device.Buffer(std::vector<int32_t>{0});
    work.bands = device.Buffer(std::vector<cuda::DeviceBand>{{0, 1 << 30, 0, 1 << 30, -(1 << 30), turned ? -250 : 0}});
    work.block_count = 1;
  }
};

cuda::ScoreParams Score(Kind kind) {
  cuda::ScoreParams score = {};
  score.scale = 0.1f;
  score.soft_cap = kind == Kind::kTransformed ? 5.0f : 0.0f;
  score.scale_in_cap = 0.02f;
  score.heads = score.kv_heads = score.group = 1;
  score.qk_width = score.v_width = kWidth;
  return score;
}

std::vector<int64_t> Poisoned(Kind kind, std::vector<int64_t> rows) {
  return kind == Kind::kPoisoned ? rows : std::vector<int64_t>();
}

template <typename T>
cuda::Matrix<T> Dense(T* data, int64_t width) {
  return {data, width, width};
}

void MakeAttend(Case& test, Kind kind) {
  using Config = cuda::sm90::AttendConfig<kWidth, kWidth>;
  vgpu::Device& device = test.device;
  const uint16_t* query = device.Buffer(Elements(kQueries, kWidth));
  const uint16_t* key = device.Buffer(Elements(kRows, kWidth));
  // A masked piece in the middle and the last one hold values that are not finite.
  const uint16_t* value = device.Buffer(Elements(kRows, kWidth, Poisoned(kind, {300, kRows - 20})));
  cuda::AttendParams params = {};
  params.query = Dense(query, kWidth);
  params.key = Dense(key, kWidth);
  params.value = Dense(value, kWidth);
  params.output = Dense(device.Buffer(std::vector<float>(kQueries * kWidth)), kWidth);
  params.lse = Dense(device.Buffer(std::vector<float>(kQueries, -INFINITY)), 1);
  params.work = Lists(device, false).work;
  params.score = Score(kind);
  params.query_rows = kQueries;
  params.key_rows = kRows;
  params.vector_qk = params.vector_v = true;
  struct {
    TensorMap query, key, value;
  } maps = {MapOf(query, kWidth, Config::kRows / 2, {kQueries, 1}, {kWidth * 2, 16}),
            MapOf(key, kWidth, Config::kKeys, {kRows, 1}, {kWidth * 2, 16}),
            MapOf(value, kWidth, Config::kKeys, {kRows, 1}, {kWidth * 2, 16})};
  test.block = {Config::kThreads, 1, 1};
  test.shared_bytes = Config::kSharedBytes;
  test.Set(params, maps);
}

void MakeBackward(Case& test, Kind kind) {
  using Config = cuda::sm90::BackwardConfig<kWidth, kWidth>;
  vgpu::Device& device = test.device;
  constexpr int64_t kAll = kQueries * 3 - 20, kOwn = kWholeRows / 2;
  const uint16_t* query = device.Buffer(Elements(kAll, kWidth));
  const uint16_t* gradient = device.Buffer(Elements(kAll, kWidth, Poisoned(kind, {150, kAll - 3})));
  const uint16_t* key = device.Buffer(Elements(kOwn, kWidth));
  const uint16_t* value = device.Buffer(Elements(kOwn, kWidth));
  cuda::BackwardParams params = {};
  params.query = Dense(query, kWidth);
  params.key = Dense(key, kWidth);
  params.value = Dense(value, kWidth);
  params.output_gradient = Dense(gradient, kWidth);
  params.lse = Dense<const float>(device.Buffer(std::vector<float>(kAll, 1.0f)), 1);
  params.delta = Dense<const float>(device.Buffer(std::vector<float>(kAll, 0.5f)), 1);
  params.key_gradient = Dense(device.Buffer(std::vector<float>(kOwn * kWidth)), kWidth);
  params.value_gradient = Dense(device.Buffer(std::vector<float>(kOwn * kWidth)), kWidth);
  params.by_keys = Lists(device, true).work;
  params.score = Score(kind);
  params.query_rows = kAll;
  params.key_rows = kOwn;
  params.vector_qk = params.vector_v = true;
  struct {
    TensorMap own1, own2, other1, other2;
  } maps = {MapOf(key, kWidth, Config::kOwnRows / 2, {kOwn, 1}, {kWidth * 2, 16}),
            MapOf(value, kWidth, Config::kOwnRows / 2, {kOwn, 1}, {kWidth * 2, 16}),
            MapOf(query, kWidth, Config::kOtherRows, {kAll, 1}, {kWidth * 2, 16}),
            MapOf(gradient, kWidth, Config::kOtherRows, {kAll, 1}, {kWidth * 2, 16})};
  test.block = {Config::kThreads, 1, 1};
  test.shared_bytes = Config::kSharedBytes;
  test.Set(params, maps);
}

void MakeDecode(Case& test, Kind kind) {
  using Config = cuda::sm90::DecodeConfig<192, 128, true>;
  constexpr int64_t kPageTokens = 32, kHeads = 64, kCached = 600, kPages = (kCached + kPageTokens - 1) / kPageTokens;
  vgpu::Device& device = test.device;
  const uint16_t* query = device.Buffer(Elements(kHeads, 192));
  const uint16_t* cache =
      device.Buffer(Elements(kPages * kPageTokens, 192, Poisoned(kind, {3, kCached - 3, kCached + 2})));
  std::vector<int32_t> pages(kPages);
  for (int64_t i = 0; i < kPages; ++i) pages[i] = static_cast<int32_t>(i);
  cuda::DecodeParams params = {};
  params.query = {query, kHeads * 192, 192};
  params.output = {device.Buffer(std::vector<float>(kHeads * 128)), kHeads * 128, 128};
  params.lse = {device.Buffer(std::vector<float>(kHeads)), kHeads, 1};
  params.key = params.value = reinterpret_cast<const std::byte*>(cache);
  params.page_stride = kPageTokens * 192 * 2;
  params.key_row_stride = params.value_row_stride = params.key_head_stride = params.value_head_stride = 192 * 2;
  params.page_tokens = kPageTokens;
  params.sequences = device.Buffer(std::vector<cuda::DecodeRows>{{0, 1, 0, 0}});
  params.pages = device.Buffer(pages);
  params.visible = device.Buffer(std::vector<cuda::VisibleRows>{{10, kCached}});
  params.query_rows = params.sequence_count = params.rows_per_sequence = params.splits = params.tiles = 1;
  params.score = Score(kind);
  params.score.heads = params.score.group = kHeads;
  params.score.qk_width = 192;
  params.score.v_width = 128;
  params.vector_query = params.vector_key = params.vector_value = true;
  struct {
    TensorMap key, value;
    int box_rows;
    int padding[31];  // of a struct whose first member is aligned to 128 bytes
  } maps = {MapOf(cache, 192, kPageTokens, {kPageTokens, 1, kPages}, {192 * 2, 16, kPageTokens * 192 * 2}),
            {},
            kPageTokens,
            {}};
  test.block = {Config::kThreads, 1, 1};
  test.shared_bytes = Config::kSharedBytes;
  test.Set(params, maps);
}

struct Kernel {
  const char* name;
  const char* entry;  // part of the mangled name: kernel, element, widths, options
  void (*make)(Case&, Kind);
  int unnoticed;  // instructions that order global memory only, between warps of a block, which nobody watches
};

class PlantedInHopper : public ::testing::TestWithParam<Kernel> {};

// How an instruction looks, and what it becomes without its effect.
const std::pair<const char*, const char*> kSynchronisation[] = {
    {R"(mbarrier\.try_wait[^;]*; selp\.u32 (%r\d+), 1, 0, p;)", "mov.u32 $1, 1;"},
    {R"(mbarrier\.arrive[^;]*;)", ""},
    {R"(mbarrier\.expect_tx[^;]*;)", ""},
    {R"(fence\.proxy\.async[^;]*;)", ""},
    {R"(wgmma\.wait_group[^;]*;)", ""},
    {R"(wgmma\.commit_group[^;]*;)", ""},
    {R"(barrier\.cta\.sync[^;]*;)", ""},
};

TEST_P(PlantedInHopper, EverySynchronisationIsMissed) {
  const Text text = ReadEntry(GetParam().entry);
  ASSERT_FALSE(text.entry.empty());
  Case cases[2];
  GetParam().make(cases[0], Kind::kPoisoned);
  GetParam().make(cases[1], Kind::kTransformed);
  for (Case& test : cases) {
    const auto fault = RunKernel(text, test);
    ASSERT_FALSE(fault.has_value()) << fault->message;
  }
  int planted = 0;
  std::string unnoticed;
  for (const auto& [pattern, instead] : kSynchronisation) {
    const std::regex instruction(pattern);
    for (size_t i = text.begin; i < text.end; ++i) {
      if (!std::regex_search(text.lines[i], instruction)) continue;
      Text wrong = text;
      wrong.lines[i] = std::regex_replace(text.lines[i], instruction, instead);
      if (!RunKernel(wrong, cases[0]).has_value() && !RunKernel(wrong, cases[1]).has_value()) {
        unnoticed += "line " + std::to_string(i + 1) + ": " + text.lines[i] + "\n";
      }
      ++planted;
    }
  }
  EXPECT_EQ(std::count(unnoticed.begin(), unnoticed.end(), '\n'), GetParam().unnoticed) << unnoticed;
  EXPECT_GE(planted, 15);
  RecordProperty("planted", planted);
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, PlantedInHopper,
    ::testing::Values(Kernel{"Attend", "AttendKernelSm90INS0_8BFloat16ELi64ELi64ELb1E", &MakeAttend, 0},
                      Kernel{"Backward", "BackwardKernelSm90INS0_8BFloat16ELi64ELi64ELNS0_8GradientE1ELb1E",
                             &MakeBackward, 0},
                      Kernel{"Decode", "DecodeKernelSm90INS0_8BFloat16ELi192ELi128ELb1ELb1E", &MakeDecode, 1}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tessera::testing
