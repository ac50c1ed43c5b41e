// Finds the spans of a region (cpu/spans.h) from the depths of tiles.
#include "cpu/spans.h"

#include <cstddef>
#include <cstdint>

#include "common/rules.h"

namespace adabm {
namespace {

struct Ends {
  int least, most;
  bool has(int depth) const { return depth >= least && depth <= most; }
};

// The map of depths of one image.
struct Map {
  const adabm_region& r;
  const uint8_t* depth;
  int rows, columns;    // size of the map in tiles
  int height, width;    // size of the image in pixels

  bool has(Ends ends, int row, int column) const { return ends.has(depth[static_cast<ptrdiff_t>(row) * columns + column]); }
  int tile_row(int y) const { return (r.top + std::min(std::max(y, 0), height - 1)) / r.tile; }

  bool is_all(Ends ends) const {
    return std::all_of(depth, depth + static_cast<ptrdiff_t>(rows) * columns, [&](int d) { return ends.has(d); });
  }

  // Returns the columns at most `reach` away from a tile that has a depth in the given range and a pixel in rows y - reach..y + reach.
  Spans around(Ends ends, int reach, int y) const {
    Spans spans;
    const int first = tile_row(y - reach), last = tile_row(y + reach);
    for (int j = 0; j < columns; j++) {
      bool found = false;
      for (int i = first; i <= last && !found; i++) found = has(ends, i, j);
      if (!found) continue;
      const int64_t left = static_cast<int64_t>(j) * r.tile - r.left;
      const int begin = static_cast<int>(std::max<int64_t>(left - reach, 0));
      const int end = static_cast<int>(std::min<int64_t>(left + r.tile + reach, width));
      if (!spans.empty() && spans.back().end >= begin)
        spans.back().end = end;
      else
        spans.push_back({begin, end});
    }
    return spans;
  }
};

Spans overlap(const Spans& a, const Spans& b) {
  Spans both;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size(); a[i].end < b[j].end ? i++ : j++) {
    const Span span = a[i].within(b[j]);
    if (!span.empty()) both.push_back(span);
  }
  return both;
}

Spans without(const Spans& a, const Spans& b) {
  Spans rest;
  for (Span span : a) {
    for (Span hole : b) {
      if (hole.end <= span.begin || hole.begin >= span.end) continue;
      if (hole.begin > span.begin) rest.push_back({span.begin, hole.begin});
      span.begin = hole.end;
    }
    if (!span.empty()) rest.push_back(span);
  }
  return rest;
}

bool equal(const Spans& a, const Spans& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](Span x, Span y) { return x.begin == y.begin && x.end == y.end; });
}

}  // namespace

Spans joined(const Spans& a, const Spans& b) {
  Spans both(a.size() + b.size()), spans;
  std::merge(a.begin(), a.end(), b.begin(), b.end(), both.begin(), [](Span x, Span y) { return x.begin < y.begin; });
  for (Span span : both)
    if (!spans.empty() && spans.back().end >= span.begin)
      spans.back().end = std::max(spans.back().end, span.end);
    else
      spans.push_back(span);
  return spans;
}

const Strip& strip_of(const std::vector<Strip>& strips, int row) {
  return *std::upper_bound(strips.begin(), strips.end(), row, [](int at, const Strip& strip) { return at < strip.end_row; });
}

std::vector<Strip> strips_of(const adabm_region& r, int image, int height, int width) {
  const std::vector<Strip> all = {{height, {{0, width}}, {}}};
  if (!r.depth) return all;
  const auto tiles = [&](int before, int size) { return static_cast<int>((static_cast<int64_t>(before) + size + r.tile - 1) / r.tile); };
  const int rows = tiles(r.top, height), columns = tiles(r.left, width);
  const Map map = {r, r.depth + static_cast<ptrdiff_t>(image) * rows * columns, rows, columns, height, width};
  const Ends own = {r.own_least, r.own_most}, near = {r.near_least, r.near_most}, pass = {r.pass_least, r.pass_most};
  if (map.is_all(own) && map.is_all(near)) return all;

  // The rows at which a row of tiles begins or ends to contain the row of pixels, or to be within reach of it.
  std::vector<int> ends = {height};
  for (int i = 0; i <= rows; i++)
    for (const int away : {0, -r.reach, r.reach, -r.pass_reach, r.pass_reach}) {
      const int64_t row = static_cast<int64_t>(i) * r.tile - r.top + away;
      if (row > 0 && row < height) ends.push_back(static_cast<int>(row));
    }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());

  std::vector<Strip> strips;
  int row = 0;
  for (const int end : ends) {
    Strip strip = {end, overlap(map.around(own, 0, row), map.around(near, r.reach, row)), {}};
    if (passes_on(r)) strip.passed = without(map.around(pass, r.pass_reach, row), strip.computed);
    if (!strips.empty() && equal(strips.back().computed, strip.computed) && equal(strips.back().passed, strip.passed))
      strips.back().end_row = end;
    else
      strips.push_back(std::move(strip));
    row = end;
  }
  return strips;
}

}  // namespace adabm
