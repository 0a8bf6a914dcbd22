// Streams and events.
#include <chrono>

#include "tests/virtual_gpu/cudart/node.h"
#include "tests/virtual_gpu/cudart/order.h"

using namespace tessera::vgpu;

namespace {

// Runs `body` with the stream of a handle.
template <typename Body>
cudaError_t WithStream(cudaStream_t handle, Body&& body) {
  return Call([&](Node& node) {
    const auto stream = node.FindStream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : body(*stream);
  });
}

// Events of a captured stream have no point in time.
cudaError_t CheckTimed(cudaEvent_t event) {
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  return event->capture == nullptr ? cudaSuccess : cudaErrorCapturedEvent;
}

cudaError_t WaitInCapture(CUstream_st& stream, cudaEvent_t event) {
  if (event->capture == nullptr) {
    if (stream.capture != nullptr && event->recorded) {
      stream.capture->invalid = true;
      return cudaErrorStreamCaptureIsolation;
    }
    return cudaSuccess;
  }
  if (stream.capture == nullptr) {
    stream.capture = event->capture;
    stream.capture->joined.push_back(stream.weak_from_this());
    stream.capture_tail.clear();
  } else if (stream.capture != event->capture) {
    stream.capture->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  stream.capture_tail.insert(stream.capture_tail.end(), event->capture_tail.begin(), event->capture_tail.end());
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return Call([&](Node& node) {
    if ((flags & ~cudaStreamNonBlocking) != 0) return cudaErrorInvalidValue;
    *stream = node.current().CreateStream((flags & cudaStreamNonBlocking) == 0);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Call([&](Node& node) {
    for (int i = 0; i < node.devices(); ++i) {
      if (node.device(i).DestroyStream(stream)) return cudaSuccess;
    }
    return cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  return WithStream(handle, [&](CUstream_st& stream) {
    *flags = stream.blocking() ? cudaStreamDefault : cudaStreamNonBlocking;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return WithStream(handle, [&](CUstream_st&) {
    *priority = 0;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  return WithStream(handle, [&](CUstream_st& stream) {
    *id = stream.id();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return WithStream(handle, [&](CUstream_st& stream) {
    *device = stream.device().index();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return WithStream(handle, [&](CUstream_st& stream) {
    if (stream.capture != nullptr) return RefuseInCapture(stream, "cudaStreamSynchronize");
    if (const Point point = stream.last()) point->Wait();
    return stream.device().fault_code();
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  cudaError_t result = cudaSuccess;
  const cudaError_t error = WithStream(handle, [&](CUstream_st& stream) {
    if (stream.capture != nullptr) return RefuseInCapture(stream, "cudaStreamQuery");
    const Point point = stream.last();
    if (point != nullptr && !point->Done()) result = cudaErrorNotReady;
    return stream.device().fault_code();
  });
  return error != cudaSuccess ? error : result;  // not ready is no error: cudaGetLastError does not show it
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  return Call([&](Node& node) {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    const auto stream = node.FindStream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (event->capture != nullptr || stream->capture != nullptr) return WaitInCapture(*stream, event);
    stream->device().Submit(*stream, {"cudaStreamWaitEvent", [] {}, {event->point}});
    return cudaSuccess;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Call([&](Node& node) {
    return Submit(node, stream, "cudaLaunchHostFunc", [function, data](Device&) {
      const Ordered ordered;
      function(data);
    });
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return Call([&](Node&) {
    *event = new CUevent_st;
    (*event)->timing = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Call([&](Node&) {
    if (event == nullptr) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return Call([&](Node& node) {
    const auto stream = node.FindStream(handle);
    if (event == nullptr || stream == nullptr) return cudaErrorInvalidResourceHandle;
    event->recorded = true;
    event->capture = stream->capture;
    event->capture_tail = stream->capture_tail;
    if (stream->capture != nullptr) return cudaSuccess;
    // Timing needs a moment of its own, and the legacy order may add work of other streams. Otherwise the event is the
    // end of what came before.
    event->point = event->timing || stream->blocking()
                       ? stream->device().Submit(*stream, {"cudaEventRecord", [] {}, {}})
                       : stream->last();
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  cudaError_t result = cudaSuccess;
  const cudaError_t error = Call([&](Node& node) {
    if (const cudaError_t timed = CheckTimed(event); timed != cudaSuccess) return timed;
    if (event->point != nullptr && !event->point->Done()) result = cudaErrorNotReady;
    return node.current().fault_code();
  });
  return error != cudaSuccess ? error : result;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Call([&](Node& node) {
    if (const cudaError_t timed = CheckTimed(event); timed != cudaSuccess) return timed;
    if (event->point != nullptr) event->point->Wait();
    return node.current().fault_code();
  });
}

// The time that passed on this CPU, which says nothing about a GPU.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return Call([&](Node&) {
    if (start == nullptr || end == nullptr || !start->timing || !end->timing || !start->recorded || !end->recorded) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!start->point->Done() || !end->point->Done()) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(end->point->when() - start->point->when()).count();
    return cudaSuccess;
  });
}

}  // extern "C"
