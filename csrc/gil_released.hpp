// The GIL released while C++ works. Part of the bindings.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace wmfast::bindings {

// As pybind11's gil_scoped_release, but right in a daemon thread at the interpreter's exit. Up to
// Python 3.13 taking the GIL then ends the thread by unwinding its stack: through destructors that
// may not throw, and through ones that drop Python references without the GIL. As Python does from
// 3.14 on, such a thread stops here for good; the process ends under it.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

  ~GilReleased() {
#ifdef __GLIBCXX__
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) ::pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  PyThreadState* state_;
};

}  // namespace wmfast::bindings
