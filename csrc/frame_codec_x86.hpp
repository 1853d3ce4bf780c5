// The AVX2 and AVX-512 loops of FrameCodec.
#pragma once

#include "wmfast/frame_codec.hpp"

namespace wmfast {

#if defined(__x86_64__)
extern const PlaneKernels kAvx2PlaneKernels;
extern const PlaneKernels kAvx512PlaneKernels;
#endif

}  // namespace wmfast
