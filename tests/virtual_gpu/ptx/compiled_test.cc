// PTX as nvcc really emits it, of compiled_kernels.cu: library functions with calls, switches and local memory, warp
// and block reductions, and a warp-specialised product with tensor copies, mbarriers and wgmma.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "tests/virtual_gpu/ptx/ptx_runner.h"
#include "tests/virtual_gpu/ptx/tensor_map.h"

namespace tessera::vgpu {
namespace {

std::unique_ptr<Module> Load(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string error;
  auto module = Module::Parse(text.str(), &error);
  EXPECT_NE(module, nullptr) << path << ": " << error;
  return module;
}

template <class T>
void Put(Launch& launch, size_t parameter, const T& value) {
  std::memcpy(&launch.parameters[Info(*launch.kernel).parameter_offsets[parameter]], &value, sizeof(T));
}

Launch LaunchOf(const Module& module, const char* name) {
  Launch launch;
  launch.kernel = module.Find(name);
  EXPECT_NE(launch.kernel, nullptr) << name;
  if (launch.kernel == nullptr) return launch;
  EXPECT_EQ(Info(*launch.kernel).unknown, std::vector<std::string>{});
  launch.parameters.resize(Info(*launch.kernel).parameter_block_bytes);
  return launch;
}

class CompiledTest : public testing::TestWithParam<const char*> {};

TEST_P(CompiledTest, LibraryFunctions) {
  const auto module = Load(GetParam());
  ASSERT_NE(module, nullptr);
  constexpr int kCount = 1000;
  std::mt19937 random(17);
  std::uniform_real_distribution<float> uniform(-9, 9);
  std::vector<float> x(kCount);
  for (float& v : x) v = uniform(random);
  Device device;
  const float* in = device.Buffer(x);
  float* out = device.Buffer(std::vector<float>(kCount));
  Launch launch = LaunchOf(*module, "Functions");
  ASSERT_NE(launch.kernel, nullptr);
  launch.grid = {8, 1, 1};
  launch.block = {128, 1, 1};
  Put(launch, 0, out);
  Put(launch, 1, in);
  Put(launch, 2, kCount);
  const auto fault = vgpu::Run(launch, device.memory(), nullptr, 2);
  ASSERT_FALSE(fault.has_value()) << fault->message;
  for (int i = 0; i < kCount; ++i) {
    const double v = x[i];
    double expected = 0;
    switch (i % 10) {
      case 0:
        expected = std::exp(v);
        break;
      case 1:
        expected = std::log(std::fabs(v) + 1);
        break;
      case 2:
        expected = std::sin(static_cast<double>(x[i] * 1e5f));
        break;
      case 3:
        expected = std::pow(std::fabs(v), 2.5);
        break;
      case 4:
        expected = std::tanh(v);
        break;
      case 5:
        expected = 1 / v;
        break;
      case 6:
        expected = v * i + std::sin(v);
        break;
      case 7:
        expected = std::sqrt(std::fabs(v)) * 1.1;
        break;
      case 8:
        expected = static_cast<double>(static_cast<int64_t>(x[i] * 1000) * 1234567891011LL % 10007);
        break;
      default:
        expected = v * (static_cast<int>(std::fabs(v)) & 7);
    }
    EXPECT_NEAR(out[i], expected, 4e-6 * std::max(1.0, std::fabs(expected))) << "function " << i % 10 << " of " << v;
  }
}

TEST_P(CompiledTest, BlockReduction) {
  const auto module = Load(GetParam());
  ASSERT_NE(module, nullptr);
  std::vector<float> x(4 * 256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 97);
  Device device;
  const float* in = device.Buffer(x);
  float* out = device.Buffer(std::vector<float>(4));
  Launch launch = LaunchOf(*module, "BlockSum");
  ASSERT_NE(launch.kernel, nullptr);
  launch.grid = {4, 1, 1};
  launch.block = {256, 1, 1};
  Put(launch, 0, out);
  Put(launch, 1, in);
  const auto fault = vgpu::Run(launch, device.memory(), nullptr);
  ASSERT_FALSE(fault.has_value()) << fault->message;
  for (int b = 0; b < 4; ++b) {
    double expected = 0;
    for (int i = 0; i < 256; ++i) expected += x[b * 256 + i];
    EXPECT_EQ(out[b], expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, CompiledTest, testing::Values(TESSERA_VGPU_PTX_80, TESSERA_VGPU_PTX_90A),
                         [](const auto& info) { return info.index == 0 ? "sm_80" : "sm_90a"; });

TEST(CompiledHopperTest, WarpSpecialisedProduct) {
  const auto module = Load(TESSERA_VGPU_PTX_90A);
  ASSERT_NE(module, nullptr);
  constexpr int kM = 128, kN = 192, kK = 256;
  std::mt19937 random(23);
  std::uniform_int_distribution<int> small(-4, 4);
  const auto matrix = [&](int rows) {
    std::vector<uint16_t> m(rows * kK);
    for (auto& v : m) v = static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(small(random))) >> 16);
    return m;
  };
  const std::vector<uint16_t> a = matrix(kM), b = matrix(kN);
  Device device;
  const auto map = [&](const uint16_t* base, uint32_t rows) {
    TensorMap m;
    m.rank = 2;
    m.element_bytes = 2;
    m.swizzle = Swizzle::k128;
    m.base = reinterpret_cast<uint64_t>(base);
    m.extent[0] = kK;
    m.extent[1] = rows;
    m.box[0] = m.box[1] = 64;
    m.stride_bytes[0] = kK * 2;
    return m;
  };
  const uint16_t* device_a = device.Buffer(a);
  const uint16_t* device_b = device.Buffer(b);
  float* c = device.Buffer(std::vector<float>(kM * kN));
  Launch launch = LaunchOf(*module, "Multiply");
  ASSERT_NE(launch.kernel, nullptr);
  EXPECT_GE(Info(*launch.kernel).registers, 32);
  launch.grid = {kM / 64, kN / 64, 1};
  launch.block = {160, 1, 1};
  launch.dynamic_shared_bytes = 4 * 64 * 64 * 2;
  Put(launch, 0, map(device_a, kM));
  Put(launch, 1, map(device_b, kN));
  Put(launch, 2, c);
  Put(launch, 3, kN);
  Put(launch, 4, kK);
  Counters counters;
  const auto fault = vgpu::Run(launch, device.memory(), &counters);
  ASSERT_FALSE(fault.has_value()) << fault->message;
  EXPECT_EQ(counters.tensor_flops, 2ull * kM * kN * kK);
  const auto value = [](uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); };
  int wrong = 0;
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      double expected = 0;
      for (int k = 0; k < kK; ++k) expected += static_cast<double>(value(a[m * kK + k])) * value(b[n * kK + k]);
      wrong += c[m * kN + n] != expected;
    }
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace tessera::vgpu
