# The CUDA language, toolkit and NCCL, for TESSERA_CUDA=ON.
set(TESSERA_CUDA_ARCHITECTURES "80;90a" CACHE STRING
  "GPU architectures to build for, as in sm_<architecture>: machine code and PTX for each")

find_program(TESSERA_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(CMAKE_CUDA_COMPILER)
  set(TESSERA_NVCC "${CMAKE_CUDA_COMPILER}")
endif()
if(NOT TESSERA_NVCC)
  message(FATAL_ERROR "TESSERA_CUDA=ON needs nvcc, which is neither in PATH nor under CUDA_HOME or /usr/local/cuda; "
    "install the CUDA toolkit, name the compiler with -DCMAKE_CUDA_COMPILER=, or configure with -DTESSERA_CUDA=OFF")
endif()
set(CMAKE_CUDA_COMPILER "${TESSERA_NVCC}")
# Shared, so that the same binary runs on a GPU and, under the stand-in libraries of tests/virtual_gpu, without one.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # --generate-code below says it all; CMake 3.25 has no word for sm_90a with its PTX
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "TESSERA_CUDA=ON needs CUDA 12.4 or later; ${TESSERA_NVCC} is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
# CMake 3.25 declares CUDA::nvToolsExt deprecated for projects that require 3.25, without asking whether the toolkit has
# it; CUDA 13 does not.
set(tessera_required_cmake ${CMAKE_MINIMUM_REQUIRED_VERSION})
set(CMAKE_MINIMUM_REQUIRED_VERSION 3.24)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_MINIMUM_REQUIRED_VERSION ${tessera_required_cmake})

find_library(TESSERA_HWLOC_LIBRARY hwloc REQUIRED)  # where GPUs and network cards are; Open MPI needs it too
find_path(TESSERA_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(TESSERA_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
if(NOT TESSERA_NCCL_INCLUDE_DIR OR NOT TESSERA_NCCL_LIBRARY)
  message(FATAL_ERROR "TESSERA_CUDA=ON needs NCCL: nccl.h is ${TESSERA_NCCL_INCLUDE_DIR}, libnccl is "
    "${TESSERA_NCCL_LIBRARY}; install libnccl-dev or set TESSERA_NCCL_INCLUDE_DIR and TESSERA_NCCL_LIBRARY")
endif()

# CMake 3.25 does not know how to ask nvcc for C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
# Images stay uncompressed: the PTX in them is what the virtual GPU runs.
string(APPEND CMAKE_CUDA_FLAGS " --no-compress --expt-relaxed-constexpr")
foreach(architecture IN LISTS TESSERA_CUDA_ARCHITECTURES)
  if(NOT architecture MATCHES "^[0-9]+[af]?$")
    message(FATAL_ERROR "TESSERA_CUDA_ARCHITECTURES has \"${architecture}\"; allowed: numbers such as 80, 86, 90a, 120")
  endif()
  string(APPEND CMAKE_CUDA_FLAGS
    " --generate-code=arch=compute_${architecture},code=[sm_${architecture},compute_${architecture}]")
endforeach()
