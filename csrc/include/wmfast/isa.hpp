// Which instructions the hot loops use: chosen when the program runs, so that one wheel fits all.
//
// Every path gives the same bits: integers throughout, and doubles summed in one fixed order
// without fused multiply-adds. WMFAST_CPU=scalar|avx2|avx512 forces a path, for tests and benches
// (amx, which nearest_code knows, is avx512 here).
#pragma once

#include <string>

namespace wmfast {

enum class Isa { kScalar, kAvx2, kAvx512 };

// "scalar", "avx2", "avx512".
const char* name_of(Isa isa);

// Whether this machine (and its operating system) can run the path.
bool is_supported(Isa isa);

// The widest path of this machine, or the one that WMFAST_CPU names. Reads the environment at every
// call. Throws std::invalid_argument for a name that is none, or a path this machine lacks.
Isa choose_isa();

}  // namespace wmfast
