// The first layer for a dense grid of queries over upsampled features.
//
// Between two neighbouring pixels of the map below, bilinear interpolation is affine in the place along an axis, and so
// is what a 3-tap convolution makes of it as long as its taps stay between the two: a run of fine pixels. Within a run
// v[i] = (1 - t) v[a] + t v[b] for any two of its pixels a, b, so its products with the first layer, W_(g, h) v[i], are
// needed for two pixels of a run alone (and for the few between runs). With s fine pixels to a pixel below, that is 4
// of s along each axis and 16 of s * s in the plane. The products are then combined in two steps: along x for every
// fine column; along y together with the attention, whose weights are split between a run's first and last row.
#include "dense.h"

namespace clit {
namespace {

// Pixels of one tile: the larger, the smaller is the share of rows and columns between runs; but its attention should
// stay in the cache.
constexpr int64_t tile_pixels(double queries_per_pixel) {
  return std::clamp<int64_t>(int64_t(1536 / queries_per_pixel), 64, 1024);
}
constexpr int64_t kTall = 32;

// Pixels begin ... end - 1 of a tile's axis that read the same products: those of one node, or of two that are mixed.
struct Segment {
  int64_t begin, end;
  int node;  // the first of its one or two nodes
  bool mixed;
};

// For one shift of the window: which pixels of the map must be multiplied, the nodes, and who reads them.
struct Nodes {
  std::vector<int64_t> place;  // of each node, as a pixel of the tile's patch
  std::vector<Segment> segments;

  // Pixels first ... first + count - 1 of a map's axis of that length, seen by a tile whose patch begins at `patch`.
  Nodes(const int64_t* run, int64_t length, int64_t first, int64_t count, int64_t patch) {
    for (int64_t i = 0; i < count;) {
      const int64_t pixel = first + i;
      if (pixel < 0 || pixel >= length) {  // its key counts, its value is 0
        ++i;
        continue;
      }
      int64_t n = 1;
      while (i + n < count && pixel + n < length && run[pixel + n] == run[pixel]) ++n;
      const int node = place.size();
      if (n < 3) {
        for (int64_t j = 0; j < n; ++j) {
          place.push_back(pixel + j - patch);
          segments.push_back({i + j, i + j + 1, int(node + j), false});
        }
      } else {
        place.push_back(pixel - patch);
        place.push_back(pixel + n - 1 - patch);
        segments.push_back({i, i + n, node, true});
      }
      i += n;
    }
  }
  int count() const { return place.size(); }
};

// What the products of one pixel are made of: (1 - last) times those of node low and last times those of node high; low
// is -1 outside the map, where values are 0.
template <typename T>
struct Mix {
  int low = -1, high = -1;
  T last = 0;
};

template <typename T>
std::vector<Mix<T>> mixes(const Nodes& nodes, int64_t count) {
  std::vector<Mix<T>> out(count);
  for (const Segment& s : nodes.segments)
    for (int64_t i = s.begin; i < s.end; ++i)
      out[i] = {s.node, s.node + int(s.mixed), s.mixed ? T(i - s.begin) / T(s.end - 1 - s.begin) : T(0)};
  return out;
}

template <typename T>
struct Runs {
  const Dense<T>& d;
  const typename Dense<T>::Tile& t;
  std::vector<Nodes> down, across;                     // for each row and column of the window
  std::vector<std::vector<Mix<T>>> by_row, by_column;  // their mixes for each row and column of the tile
  std::vector<int64_t> start;
  int grid, most = 0;  // the most nodes of any row of the window

  Runs(const Dense<T>& d_, const typename Dense<T>::Tile& t_, const int64_t* row_run, const int64_t* col_run)
      : d(d_), t(t_), start(d_.starts(t_)), grid(d_.window.grid) {
    const int64_t y = d.rows.first + t.y0 - grid / 2, x = d.cols.first + t.x0 - grid / 2;
    for (int i = 0; i < grid; ++i) {
      down.emplace_back(row_run, d.window.height, y + i, t.height(), y);
      across.emplace_back(col_run, d.window.width, x + i, t.width(), x);
      by_row.push_back(mixes<T>(down.back(), t.height()));
      by_column.push_back(mixes<T>(across.back(), t.width()));
      most = std::max(most, down.back().count());
    }
  }

  // Attention times the share of each of a segment's two nodes: [query][row of the window][2 G].
  void split(const T* attention, T* to) const {
    for (int64_t p = 0; p < t.pixels(); ++p)
      for (int i = 0; i < grid; ++i) {
        const Mix<T>& own = by_row[i][p % t.height()];
        if (own.low == own.high) continue;
        for (int64_t m = start[p]; m < start[p + 1]; ++m) {
          const T* a = attention + m * grid * grid + i * grid;
          T* both = to + (m * grid + i) * 2 * grid;
          for (int j = 0; j < grid; ++j) both[j] = (1 - own.last) * a[j], both[grid + j] = own.last * a[j];
        }
      }
  }

  // One panel of the products of row i of the window, for every column of the tile: [column][node][G][kPanel].
  // corners: [column node][row node][kPanel].
  void build(int i, const T* weight, const T* values, T* corners, T* to) const {
    const Nodes& rows = down[i];
    const int64_t column = int64_t(rows.count()) * grid * kPanel<T>, node = rows.count() * kPanel<T>;
    std::vector<const T*> a;
    for (int j = 0; j < grid; ++j, weight += d.dim * kPanel<T>) {
      const Nodes& cols = across[j];
      a.clear();
      for (int64_t x : cols.place)
        for (int64_t y : rows.place) a.push_back(values + (y * d.patch_cols(t) + x) * d.dim);
      multiply_rows<T, false>(a.size(), d.dim, a.data(), 1, weight, corners, kPanel<T>);
      T* place = to + j * kPanel<T>;
      for (const Mix<T>& own : by_column[j]) {
        if (own.low < 0)
          for (int n = 0; n < rows.count(); ++n) std::fill_n(place + n * grid * kPanel<T>, kPanel<T>, T(0));
        else
          mix(corners + own.low * node, corners + own.high * node, own.last, rows.count(), place);
        place += column;
      }
    }
  }

  // to: [row node][G][kPanel], of which one column is written.
  void mix(const T* low, const T* high, T last, int nodes, T* to) const {
    const int step = grid * kPanel<T>;
    if (low == high)
      for (int n = 0; n < nodes; ++n, low += kPanel<T>, to += step)
        for (int l = 0; l < kPanel<T>; l += kLanes<T>) store(to + l, load(low + l));
    else
      for (int n = 0; n < nodes; ++n, low += kPanel<T>, high += kPanel<T>, to += step)
        for (int l = 0; l < kPanel<T>; l += kLanes<T>)
          store(to + l, (T(1) - last) * load(low + l) + last * load(high + l));
  }

  // Adds to result, one panel of it, what row i of the window gives.
  void apply(int i, const T* attention, const T* split, const T* products, const T** a, T* result) const {
    const int64_t tall = t.height(), column = int64_t(down[i].count()) * grid * kPanel<T>;
    for (int64_t x = 0; x < t.width(); ++x)
      for (const Segment& s : down[i].segments) {
        const int64_t m0 = start[x * tall + s.begin], m = start[x * tall + s.end] - m0;
        for (int64_t q = 0; q < m; ++q)
          a[q] = s.mixed ? split + ((m0 + q) * grid + i) * 2 * grid : attention + ((m0 + q) * grid + i) * grid;
        multiply_rows<T, true>(m, s.mixed ? 2 * grid : grid, a, 1,
            products + x * column + int64_t(s.node) * grid * kPanel<T>, result + m0 * kPanel<T>, kPanel<T>);
      }
  }

  void run() const {
    const int positions = d.window.positions(), dim = d.dim;
    const int64_t panels = d.padded / kPanel<T>, queries = start.back(),
                  patch = d.patch_rows(t) * d.patch_cols(t) * dim;
    size_t widest = 0;
    for (const Nodes& nodes : across) widest = std::max(widest, nodes.place.size());
    Buffer<T> keys(patch + kNarrowLanes<T> + kLanes<T>), values(patch);
    Buffer<T> attention(queries * positions + kNarrowLanes<T> + kLanes<T>), split(queries * positions * 2);
    Buffer<T> corners(widest * most * kPanel<T>), products(t.width() * most * grid * kPanel<T>);
    Buffer<T> result(queries * d.padded);  // [panel][query][kPanel]
    std::vector<const T*> a(queries);
    d.begin(queries, result.get());
    for (int h = 0; h < d.heads; ++h) {
      d.template cut<true>(d.k, t, h, keys.get());
      d.template cut<false>(d.v, t, h, values.get());
      d.attend(t, h, keys.get(), attention.get());
      this->split(attention.get(), split.get());
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int i = 0; i < grid; ++i) {
          const T* weight = d.packed + ((h * panels + panel) * positions + i * grid) * dim * kPanel<T>;
          build(i, weight, values.get(), corners.get(), products.get());
          apply(i, attention.get(), split.get(), products.get(), a.data(), result.get() + panel * queries * kPanel<T>);
        }
    }
    d.place(t, queries, result.get());
  }
};

void dense_linear_runs(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor row_taps,
    Tensor row_weights, Tensor row_bias, Tensor row_run, Tensor col_nearest, Tensor col_taps, Tensor col_weights,
    Tensor col_bias, Tensor col_run, Tensor out) {
  const DenseCall all{q, k, v, packed, offset, row_nearest, row_taps, row_weights, row_bias, col_nearest, col_taps,
      col_weights, col_bias, out};
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    all.tiles<T>(tile_pixels, kTall, [&](const Dense<T>& dense, const typename Dense<T>::Tile& tile) {
      Runs<T>(dense, tile, read<int64_t>(row_run), read<int64_t>(col_run)).run();
    });
  };
  is_double(q) ? call(double()) : call(float());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(clit_cpu, m) {
  m.def(
      "dense_linear_runs(Tensor q, Tensor k, Tensor v, Tensor packed, Tensor offset, Tensor row_nearest, Tensor "
      "row_taps, Tensor row_weights, Tensor row_bias, Tensor row_run, Tensor col_nearest, Tensor col_taps, Tensor "
      "col_weights, Tensor col_bias, Tensor col_run, Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(clit_cpu, CPU, m) { m.impl("dense_linear_runs", TORCH_BOX(&dense_linear_runs)); }

}  // namespace clit
