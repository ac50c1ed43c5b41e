// Arrays between two pages that may not be touched. What else is on the pages between them holds a pattern, which is looked for afterwards.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "input.h"

constexpr uint8_t kPattern = 0xA7;

inline bool is_pattern(const uint8_t* from, size_t count) {
  static const std::vector<uint8_t> pattern(4096, kPattern);
  for (; count; from += std::min<size_t>(count, 4096), count -= std::min<size_t>(count, 4096))
    if (std::memcmp(from, pattern.data(), std::min<size_t>(count, 4096))) return false;
  return true;
}

class Guarded {
 public:
  enum Place { kEnd, kStart, kShifted };  // up to a page that may not be touched, behind one, or so that it is aligned to no more than asked

  Guarded(size_t size, size_t alignment, Place place) : size_(size) {
    const size_t page = page_bytes();
    pages_ = (size + (place == kShifted ? alignment : 0) + page - 1) / page + !size;
    std::vector<uint8_t*>& idle = pool()[pages_];
    if (idle.empty()) {
      void* room = mmap(nullptr, (pages_ + 2) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (room == MAP_FAILED) fail("mmap");
      base_ = static_cast<uint8_t*>(room);
      mprotect(base_, page, PROT_NONE), mprotect(base_ + (pages_ + 1) * page, page, PROT_NONE);
    } else {
      base_ = idle.back(), idle.pop_back();
    }
    const size_t room = pages_ * page;
    data_ = base_ + page + (place == kEnd ? (room - size) / alignment * alignment : place == kStart ? 0 : alignment);
    std::memset(base_ + page, kPattern, room);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    std::vector<uint8_t*>& idle = pool()[pages_];
    if (idle.size() < kIdle && pages_ <= kPooledPages) idle.push_back(base_);
    else munmap(base_, (pages_ + 2) * page_bytes());
  }

  uint8_t* bytes() const { return data_; }
  size_t size() const { return size_; }
  bool untouched() const { return beside_is_untouched() && is_pattern(data_, size_); }
  bool beside_is_untouched() const {
    const uint8_t *first = base_ + page_bytes(), *end = first + pages_ * page_bytes();
    return is_pattern(first, data_ - first) && is_pattern(data_ + size_, end - data_ - size_);
  }

 private:
  static constexpr size_t kIdle = 24, kPooledPages = 64;
  static size_t page_bytes() {
    static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return page;
  }
  // Rooms that are not in use, by their pages: the system is asked for each once.
  static std::unordered_map<size_t, std::vector<uint8_t*>>& pool() {
    static auto* const one = new std::unordered_map<size_t, std::vector<uint8_t*>>;
    return *one;
  }
  uint8_t *base_, *data_;
  size_t size_, pages_;
};

// The arrays of one input.
class Arena {
 public:
  explicit Arena(Input& in) : in(in) {}
  Arena(const Arena&) = delete;
  ~Arena() {
    for (Guarded* one : held_) {
      require(one->beside_is_untouched(), "something beside an array was written");
      delete one;
    }
  }

  template <class T>
  T* make(size_t count, size_t alignment = alignof(T)) {
    const int place = in.below(4);
    held_.push_back(new Guarded(count * sizeof(T), alignment, place < 2 ? Guarded::kEnd : place == 2 ? Guarded::kStart : Guarded::kShifted));
    return reinterpret_cast<T*>(held_.back()->bytes());
  }
  float* floats(size_t count, float most, bool any = false) {
    float* made = make<float>(count);
    in.fill_floats(made, count, most, any);
    return made;
  }
  // A bit-width of 2 to 8 for each image.
  int32_t* widths(int batch) {
    int32_t* made = make<int32_t>(batch);
    for (int n = 0; n < batch; n++) made[n] = in.from(2, 8);
    return made;
  }
  Guarded* last() const { return held_.back(); }

  Input& in;

 private:
  std::vector<Guarded*> held_;
};
