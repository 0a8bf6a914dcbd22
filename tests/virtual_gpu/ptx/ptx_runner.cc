#include "tests/virtual_gpu/ptx/ptx_runner.h"

namespace tessera::vgpu {

std::string KernelText(const std::string& body, int pointers, const std::string& before, const std::string& target) {
  std::string text = ".version 9.0\n.target " + target + "\n.address_size 64\n" + before + "\n.visible .entry test(\n";
  for (int p = 0; p < pointers; ++p) {
    text += "  .param .u64 p" + std::to_string(p) + (p + 1 < pointers ? ",\n" : "\n");
  }
  text +=
      ")\n{\n  .reg .pred %p<16>;\n  .reg .b16 %h<16>;\n  .reg .b32 %r<64>;\n  .reg .f32 %f<64>;\n  .reg .b64 %x<16>;\n"
      "  .reg .f64 %d<16>;\n  .reg .b64 %rd<16>;\n  .reg .b32 %t;\n  .reg .b64 %o4, %o8;\n  mov.u32 %t, %tid.x;\n"
      "  mul.wide.u32 %o4, %t, 4;\n  mul.wide.u32 %o8, %t, 8;\n";
  for (int p = 0; p < pointers; ++p) {
    const std::string n = std::to_string(p);
    text += "  ld.param.u64 %rd" + n + ", [p" + n + "];\n  cvta.to.global.u64 %rd" + n + ", %rd" + n + ";\n";
  }
  return text + body + "\n  ret;\n}\n";
}

RunResult Device::Run(const std::string& ptx, const std::vector<const void*>& pointers, Dim3 grid, Dim3 block,
                      uint32_t dynamic_shared_bytes, Dim3 cluster, int workers) {
  RunResult result;
  const auto module = Module::Parse(ptx, &result.parse_error);
  if (module == nullptr) return result;
  Launch launch;
  launch.kernel = module->Find("test");
  if (launch.kernel == nullptr) {
    result.parse_error = "no kernel named test";
    return result;
  }
  launch.grid = grid;
  launch.block = block;
  launch.cluster = cluster;
  launch.dynamic_shared_bytes = dynamic_shared_bytes;
  launch.parameters.resize(pointers.size() * 8);
  for (size_t p = 0; p < pointers.size(); ++p) std::memcpy(&launch.parameters[p * 8], &pointers[p], 8);
  result.fault = vgpu::Run(launch, memory_, &result.counters, workers);
  return result;
}

std::vector<uint64_t> Evaluate(const std::string& body, const Lanes& inputs, int source_bits, int result_bits,
                               std::string* error) {
  Device device;
  const auto fill = [&](std::vector<uint64_t> values) {
    if (values.empty()) values.push_back(0);
    values.resize(32, values.back());
    return device.Buffer(values);
  };
  const uint64_t* a = fill(inputs.a);
  const uint64_t* b = fill(inputs.b);
  const uint64_t* c = fill(inputs.c);
  uint64_t* out = device.Buffer(std::vector<uint64_t>(32));
  const std::string s = std::to_string(source_bits), r = std::to_string(result_bits);
  std::string text = "  .reg .b" + s + " %a, %b, %c;\n  .reg .b" + r + " %result;\n";
  const char* const names[] = {"%a", "%b", "%c"};
  for (int i = 0; i < 3; ++i) {
    const std::string n = std::to_string(i);
    text += "  add.u64 %rd" + n + ", %rd" + n + ", %o8;\n  ld.global.b" + s + " " + names[i] + ", [%rd" + n + "];\n";
  }
  text += body + "\n  add.u64 %rd3, %rd3, %o8;\n  st.global.b" + r + " [%rd3], %result;\n";
  const RunResult run = device.Run(KernelText(text, 4), {a, b, c, out});
  const std::string problem = !run.parse_error.empty() ? run.parse_error : run.fault ? run.fault->message : "";
  if (error != nullptr) *error = problem;
  if (!problem.empty()) return {};
  return {out, out + 32};
}

}  // namespace tessera::vgpu
