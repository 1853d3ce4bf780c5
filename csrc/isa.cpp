#include "wmfast/isa.hpp"

#include <array>
#include <cstdlib>
#include <stdexcept>

namespace wmfast {
namespace {

constexpr std::array kPaths{Isa::kAvx512, Isa::kAvx2, Isa::kScalar};

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

bool is_supported(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           is_supported(Isa::kAvx2);
  }
  if (isa == Isa::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt");
  }
#endif
  return isa == Isa::kScalar;
}

Isa choose_isa() {
  const char* const value = std::getenv("WMFAST_CPU");
  const std::string wanted = value == nullptr ? "" : value;
  for (const Isa isa : kPaths) {
    // The variable is shared with nearest_code, which has a path for AMX: to the buffer, AVX-512.
    const bool named = wanted == name_of(isa) || (wanted == "amx" && isa == Isa::kAvx512);
    if ((wanted.empty() || named) && is_supported(isa)) return isa;
    if (named) {
      throw std::invalid_argument("WMFAST_CPU is " + wanted +
                                  ", but this machine has no such instructions");
    }
  }
  throw std::invalid_argument("WMFAST_CPU is '" + wanted +
                              "', allowed are scalar, avx2, avx512, amx");
}

}  // namespace wmfast
