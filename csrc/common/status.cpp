// The message of a thread's last failure, and the two entries that both libraries have: ABI version and last error.
#include "common/status.h"

#include <cstdarg>
#include <cstdio>

namespace adabm {
namespace {
thread_local char last_error[512] = "";
}

Error::Error(adabm_status status, const char* format, ...) : status_(status) {
  va_list list;
  va_start(list, format);
  std::vsnprintf(message_, sizeof message_, format, list);
  va_end(list);
}

void set_last_error(const char* message) noexcept { std::snprintf(last_error, sizeof last_error, "%s", message); }

}  // namespace adabm

extern "C" int32_t adabm_abi_version(void) { return ADABM_ABI_VERSION; }
extern "C" const char* adabm_last_error(void) { return adabm::last_error; }
