// Valid calls with one thing wrong: a member outside its range, a pointer that is null or not aligned.
#pragma once

#include <climits>
#include <cstddef>
#include <vector>

#include "guarded.h"

#define AT(type, member) offsetof(type, member)

// A member of a struct, and the range that its rule allows whatever the other members are.
struct Rule {
  size_t offset;
  int32_t low, high;
};
struct Pointer {
  size_t offset;
  size_t element;  // what it must be aligned to, 1 for anything
  bool needed;     // whether null is wrong as well
};

inline int32_t outside(Input& in, const Rule& rule) {
  const int64_t low = rule.low, high = rule.high;
  int64_t value = 0;
  switch (in.below(6)) {
    case 0: value = low - 1; break;
    case 1: value = high + 1; break;
    case 2: value = INT_MIN; break;
    case 3: value = INT_MAX; break;
    case 4: value = low - 1 - in.below(65536); break;
    default: value = in.word();
  }
  if ((value >= low && value <= high) || value < INT_MIN || value > INT_MAX) value = low > INT_MIN ? low - 1 : high + 1;
  return static_cast<int32_t>(value);
}

// Breaks one rule of the struct. False where the input chose one that cannot be broken here.
template <class Args>
bool break_one(Input& in, Args& args, const std::vector<Rule>& rules, const std::vector<Pointer>& pointers) {
  char* base = reinterpret_cast<char*>(&args);
  const int chosen = in.below(static_cast<int>(rules.size() + pointers.size()));
  if (chosen < static_cast<int>(rules.size())) {
    const int32_t wrong = outside(in, rules[chosen]);
    std::memcpy(base + rules[chosen].offset, &wrong, sizeof wrong);
    return true;
  }
  const Pointer& pointer = pointers[chosen - rules.size()];
  char* held;
  std::memcpy(&held, base + pointer.offset, sizeof held);
  if (pointer.needed && in.one_in(2)) held = nullptr;
  else if (held && pointer.element > 1) held += 1 + in.below(static_cast<int>(pointer.element) - 1);
  else return false;
  std::memcpy(base + pointer.offset, &held, sizeof held);
  return true;
}

// How many calls of an entry gave the right results, and how many broken ones were refused.
struct Calls {
  long computed, refused;
};
inline Calls calls;

// That a broken call is refused in words, and has written nothing.
inline void refused(adabm_status status, const std::vector<Guarded*>& outputs, const char* what) {
  if (status != ADABM_INVALID_ARGUMENT || !*adabm_last_error()) fail(std::string(what) + " took a broken rule, status " + std::to_string(status));
  for (const Guarded* output : outputs)
    if (!output->untouched()) fail(std::string(what) + " wrote although it refused");
  calls.refused++;
}

// Breaks a valid call in some ways, one after the other.
template <class Args>
void refuse_broken(Input& in, const Args& valid, const std::vector<Rule>& rules, const std::vector<Pointer>& pointers, adabm_status (*entry)(const Args*),
                   const std::vector<Guarded*>& outputs, const char* what) {
  for (int ways = in.from(1, 16); ways; ways--) {
    Args args = valid;
    if (break_one(in, args, rules, pointers)) refused(entry(&args), outputs, what);
  }
}

// The same for the bit-widths of images.
template <class Args>
void refuse_bits(Input& in, const Args& args, int32_t* bits, int batch, adabm_status (*entry)(const Args*), const std::vector<Guarded*>& outputs,
                 const char* what) {
  int32_t& one = bits[in.below(batch)];
  const int32_t valid = one;
  one = outside(in, {0, 2, 8}), refused(entry(&args), outputs, what), one = valid;
}

constexpr int kMostSide = 1 << 20;
// Rules that several structs have.
template <class Args>
std::vector<Rule> common_rules() {
  return {{AT(Args, struct_bytes), sizeof(Args), sizeof(Args)}, {AT(Args, threads), 1, 256}};
}
