// __device__ and __constant__ variables. Each device has its own copy, in the module that was parsed for it.
#include <cstring>

#include "tests/virtual_gpu/cudart/node.h"
#include "tests/virtual_gpu/cudart/registry.h"

using namespace tessera::vgpu;

namespace {

// Runs `body` with where a variable lies on the current device.
template <typename Body>
cudaError_t WithSymbol(const void* symbol, Body&& body) {
  return Call([&](Node& node) {
    const Variable* const variable = Registry::Get().FindVariable(symbol);
    if (variable == nullptr) return cudaErrorInvalidSymbol;
    cudaError_t error = cudaSuccess;
    Module* const module = variable->program->ModuleFor(node.current(), &error);
    if (module == nullptr) return error;
    const Global* const global = module->FindGlobal(variable->name);
    return global == nullptr ? cudaErrorInvalidSymbol : body(node, *global);
  });
}

bool Fits(const Global& global, size_t offset, size_t bytes) {
  return offset <= global.bytes && bytes <= global.bytes - offset;
}

cudaError_t CopySymbol(const void* symbol, void* to, const void* from, size_t bytes, size_t offset, cudaStream_t stream,
                       bool wait, const char* what) {
  return WithSymbol(symbol, [&](Node& node, const Global& global) {
    if (!Fits(global, offset, bytes)) return cudaErrorInvalidValue;
    auto* const inside = reinterpret_cast<char*>(global.address) + offset;
    void* const target = to == nullptr ? inside : to;
    const void* const source = to == nullptr ? from : inside;
    auto run = [target, source, bytes](Device&) { std::memcpy(target, source, bytes); };
    return wait ? SubmitAndWait(node, stream, what, run) : Submit(node, stream, what, run);
  });
}

}  // namespace

extern "C" {

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  return WithSymbol(symbol, [&](Node&, const Global& global) {
    *address = reinterpret_cast<void*>(global.address);
    return cudaSuccess;
  });
}

cudaError_t cudaGetSymbolSize(size_t* bytes, const void* symbol) {
  return WithSymbol(symbol, [&](Node&, const Global& global) {
    *bytes = global.bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind) {
  return CopySymbol(symbol, nullptr, from, bytes, offset, nullptr, true, "cudaMemcpyToSymbol");
}

cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind,
                                    cudaStream_t stream) {
  return CopySymbol(symbol, nullptr, from, bytes, offset, stream, false, "cudaMemcpyToSymbolAsync");
}

cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind) {
  return CopySymbol(symbol, to, nullptr, bytes, offset, nullptr, true, "cudaMemcpyFromSymbol");
}

cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind,
                                      cudaStream_t stream) {
  return CopySymbol(symbol, to, nullptr, bytes, offset, stream, false, "cudaMemcpyFromSymbolAsync");
}

}  // extern "C"
