// Exceptions that become a status and a message, so that nothing throws across the C ABI.
#pragma once

#include <exception>
#include <new>

#include "adabm/adabm.h"

namespace adabm {

class Error : public std::exception {
 public:
  Error(adabm_status status, const char* format, ...) __attribute__((format(printf, 3, 4)));
  const char* what() const noexcept override { return message_; }
  adabm_status status() const noexcept { return status_; }

 private:
  adabm_status status_;
  char message_[512];
};

#define ADABM_REQUIRE(condition, ...)                                            \
  do {                                                                           \
    if (!(condition)) throw ::adabm::Error(ADABM_INVALID_ARGUMENT, __VA_ARGS__); \
  } while (0)

void set_last_error(const char* message) noexcept;

// Runs the body of an entry point and turns its exceptions into the status and the message of the entry.
template <class Body>
adabm_status guarded(Body&& body) noexcept {
  try {
    body();
    return ADABM_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory");
  } catch (const std::exception& error) {
    set_last_error(error.what());
  } catch (...) {
    set_last_error("unknown error");
  }
  return ADABM_INTERNAL;
}

}  // namespace adabm
