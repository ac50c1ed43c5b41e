// How the rows of a convolution are cut into bands (cpu/bands.h); cpu/conv2d.cpp hands these to threads.
#include "cpu/bands.h"

#include <limits>

#include "cpu/general.h"

namespace adabm {
namespace {

constexpr int kTasksPerThread = 8;  // bands per thread: enough to level out threads that other work slows down
constexpr int kPassedPixels = 4;    // so many passed pixels cost about as much as one computed pixel
constexpr int kGroupPixels = 4;     // fixed cost of a group of rows, in computed pixels

int64_t passed_cost(const Strip& strip, int rows) {
  int64_t columns = 0;
  for (const Span& span : strip.passed) columns += span.columns();
  return (rows * columns + kPassedPixels - 1) / kPassedPixels;
}

}  // namespace

int Bands::Form::most_rows(int row) const { return row < outer_rows || row >= height - outer_rows ? 1 : std::min(rows, height - outer_rows - row); }

int64_t Bands::Form::cost(const Spans& spans) const {
  int64_t tiles = 0;
  for (const Span& span : spans) tiles += (span.columns() + columns - 1) / columns;
  return tiles ? rows * (tiles * columns + kGroupPixels) : 0;
}

// Divides rows into groups so that the total cost is least: a group computes all columns that any of its rows has, so where rows differ it
// may be cheaper to begin another group.
void Bands::group_rows(const std::vector<Strip>& strips, const Form& form) {
  if (strips.size() == 1) {
    if (strips[0].computed.empty()) return;
    for (int row = 0, rows; row < form.height; row += rows) {
      rows = form.most_rows(row);
      groups_.push_back({row, rows, &strips[0], &strips[0].computed});
    }
    return;
  }
  std::vector<int64_t> best(form.height + 1, 0);  // least cost of the rows from this one on
  std::vector<uint8_t> chosen(form.height, 0);    // rows of the group that begins at this row
  // The cost of a group that begins in the strip of the row and ends in one of the strips after it.
  std::vector<int64_t> costs;
  for (int at = static_cast<int>(strips.size()) - 1; at >= 0; at--) {
    const int first_row = at ? strips[at - 1].end_row : 0;
    if (strips[at].computed.empty()) {
      std::fill(best.begin() + first_row, best.begin() + strips[at].end_row, best[strips[at].end_row]);
      continue;
    }
    costs.assign(1, form.cost(strips[at].computed));
    Spans all = strips[at].computed;
    for (size_t next = at + 1; next < strips.size() && strips[next - 1].end_row < strips[at].end_row + form.rows - 1; next++) {
      all = joined(all, strips[next].computed);
      costs.push_back(form.cost(all));
    }
    for (int row = strips[at].end_row - 1; row >= first_row; row--) {
      best[row] = std::numeric_limits<int64_t>::max();
      int last = at;  // strip of the group's last row
      for (int rows = 1; rows <= form.most_rows(row); rows++) {
        while (row + rows > strips[last].end_row) last++;
        const int64_t cost = costs[last - at] + best[row + rows];
        // Among groups of equal cost the one with the most rows is taken, but none that ends in rows without columns.
        if (!strips[last].computed.empty() && cost <= best[row]) best[row] = cost, chosen[row] = static_cast<uint8_t>(rows);
      }
    }
  }
  const Strip* strip = strips.data();
  for (int row = 0; row < form.height; row += std::max<int>(chosen[row], 1)) {
    while (row >= strip->end_row) strip++;
    if (!chosen[row]) continue;
    const Spans* all = &strip->computed;
    for (const Strip* next = strip; next->end_row < row + chosen[row]; next++) {
      joined_.push_back(joined(*all, next[1].computed));
      all = &joined_.back();
    }
    groups_.push_back({row, chosen[row], strip, all});
  }
}

Bands::Bands(const adabm_conv2d_args& a, const PackedHeader& header) {
  const Axes axes = axes_of(header.geometry, header.kernel_h, header.kernel_w);
  const int height = axes.rows.outputs(a.height), width = axes.columns.outputs(a.width);
  std::vector<Form> forms;
  std::vector<size_t> ends;  // where the groups of each image end
  int64_t total = 0;
  strips_.reserve(a.batch);
  for (int n = 0; n < a.batch; n++) {
    const int tile = header.tile_for_bits[a.x_bits[n] - ADABM_MIN_BITS];
    const bool direct = tile == ADABM_TILE_DIRECT;
    forms.push_back({by_two_rows(header) ? 2
                     : direct            ? 1
                                         : kTiles[tile].rows.outputs,
                     direct || kTiles[tile].kn2row ? 1 : kTiles[tile].columns.outputs, header.border_kernels ? header.kernel_h / 2 : 0, height});
    strips_.push_back(strips_of(a.region, n, height, width));
    const size_t first = groups_.size();
    group_rows(strips_[n], forms[n]);
    ends.push_back(groups_.size());
    for (size_t i = first; i < groups_.size(); i++) total += forms[n].cost(*groups_[i].spans);
    int row = 0;
    for (const Strip& strip : strips_[n]) total += passed_cost(strip, strip.end_row - row), row = strip.end_row;
  }

  const int64_t wanted = static_cast<int64_t>(a.threads) * kTasksPerThread;
  const int64_t enough = a.threads == 1 ? std::numeric_limits<int64_t>::max() : (total + wanted - 1) / wanted;
  const RowGroup* group = groups_.data();
  for (int n = 0; n < a.batch; n++) {
    const RowGroup* const end_group = groups_.data() + ends[n];
    const Strip* strip = strips_[n].data();
    Band band = {n, 0, 0, group, group};
    int64_t cost = 0;
    for (int row = 0, end; row < height; row = end) {
      while (row >= strip->end_row) strip++;
      if (group < end_group && group->row == row) {
        end = row + group->rows;
        cost += forms[n].cost(*group->spans);
        group++;
      } else {  // nothing is computed in these rows, which all lie in one strip
        end = strip->passed.empty() ? strip->end_row : row + 1;
      }
      for (int at = row; at < end; at = strip->end_row) {
        while (at >= strip->end_row) strip++;
        cost += passed_cost(*strip, std::min(end, strip->end_row) - at);
      }
      band.end_row = end, band.end_group = group;
      if (!cost) band.first_row = end, band.first_group = group;
      if (cost && (cost >= enough || end == height)) {
        bands_.push_back(band);
        band.first_row = end, band.first_group = group, cost = 0;
      }
    }
  }
}

}  // namespace adabm
