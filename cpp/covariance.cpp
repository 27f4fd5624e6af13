// Arithmetic: sum_n D*L_n*(L_n+1) flops for rollouts of lengths L_n, the symmetric half of
// sum_n X_n X_n^T. Bytes: the scores are read once for the means and once for the products.
//
// Written as matrices, sums = A A^T with A = [Y_1 | Y_2 | ...] of shape (T, N*D), Y = X - c with c
// the mean of a step over the rollouts that reach it. A never exists: panels of 256 columns are
// packed (weighted, masked, centred and transposed on the way), multiplied, forgotten. Panels come
// in batches, packed by all threads, then multiplied by all: a task is one tile of 96 x 96 sums.
// Where T is small there are few tiles, and several accumulators take panels in turn.
// The batches and the accumulators follow from the shape of the data alone.
//
// Raggedness: rollouts are taken longest first, so that the panels' heights shrink and padding is
// hardly ever multiplied. Padding is X = 0, so Y = -c: true of panels where they hold it, and of
// what lies above them where c = 0. So c is 0 from the row on that an eighth of the weight does not
// reach, and rollouts that end before are padded up to there. For any c,
//   sum_n p (X_i - m_i)(X_j - m_j) = sum_n p Y_i Y_j - P (m_i - c_i)(m_j - c_j),
// P the weight of all: as much work as one more rollout. No difference of large numbers: where c is
// 0, the raggedness alone makes the left side at least a quarter of the second moment.
//
// Digits: terms are centred before they are rounded to the products' type (columns.hpp), so that a
// mean far above the spread costs none. float32 products run over at most 256 columns and are added
// to float64 sums.
#include "covariance.hpp"

#include <cmath>

#include "columns.hpp"
#include "means.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace rlvar {

namespace {

constexpr index_t kMeanBytes = kMiB;  // means and tails of the coordinates at hand, if these
constexpr index_t kCoords = 256;      // are not fewer than this, and at most
constexpr index_t kMostMeanBytes = 12 * kMiB;
constexpr index_t kBlockBytes = 16 * kMiB;  // sums of blocks of steps

/// What is left of the means: rows of T, less their centres; no data where that is 0. And P.
struct Rest {
  View2<const double> means;
  double weight;
};

/// sums += A A^T / scale^2 - weight rest rest^T, products in P.
template <class P, class T>
void add_products(const Columns<T>& a, const Rest& rest, TileSums& sums, int threads) {
  const index_t rows = a.rows_from(0);
  if (rows == 0) return;
  const double factor = 1.0 / a.scale / a.scale;
  const index_t before = rest.means.data ? ceil_div(a.width, kPanel) : 0;  // panels of the rest
  const auto height = [&](index_t i) {
    return i < before ? rows : a.rows_from((i - before) * kPanel);
  };
  const auto panel = [&](index_t i, P* data) {
    const index_t left = i < before ? a.width - i * kPanel : a.count() - (i - before) * kPanel;
    return Panel<P>{data, std::min(kPanel, left)};
  };
  multiply_in_batches<P>(
      rows, before + ceil_div(a.count(), kPanel), 1, sums.accumulators(), threads, height,
      [](index_t, index_t) {},
      [&](index_t i, index_t g, P* data) {
        if (i < before) {
          pack_matrix(rest.means, a.scale, g, i * kPanel, panel(i, data));
        } else {
          pack(a, g, (i - before) * kPanel, panel(i, data));
        }
      },
      [&] {
        return [&](index_t i, P* data, index_t pair, index_t accumulator) {
          const auto [i0, j0] = Tiles::corner(pair);
          tile_product(panel(i, data), i0, j0, height(i),
                       i < before ? -rest.weight * factor : factor, sums.tile(accumulator, pair));
        };
      });
}

/// The same where there is one row, and panels would be mostly empty: its squares, in float64,
/// along the coordinates. Memory-bound.
template <class T>
void add_squares(const Columns<T>& a, const Rest& rest, TileSums& sums, int threads) {
  using L = Lanes<double>;
  const Terms<T>& terms = a.terms;
  const index_t samples = terms.scores.n;
  const index_t blocks = std::clamp<index_t>(samples * a.width / 16384, 1, 16);
  std::vector<double> parts = zeros(blocks);
  for_each_task(blocks, threads, [&] {
    return [&](index_t block) {
      double total = 0.0;
      for (index_t i = samples * block / blocks; i < samples * (block + 1) / blocks; ++i) {
        const index_t n = a.order[static_cast<std::size_t>(i)];
        const double* c = &a.centre(0, 0);
        if (!terms.live(n, 0)) {
          total += terms.probability(n) * squared_norm(c, a.width);
          continue;
        }
        const T* s = terms.scores.row(n, 0) + a.d0;
        const double w = terms.weights(n, 0);
        typename L::Vec squares{};
        double narrow = 0.0;
        index_t d = 0;
        for (; d + L::width <= a.width; d += L::width) {
          const auto y = w * load_doubles(s + d) - L::load(c + d);
          squares += y * y;
        }
        for (; d < a.width; ++d) {
          const double y = w * static_cast<double>(s[d]) - c[d];
          narrow += y * y;
        }
        total += terms.probability(n) * (sum_of(squares) + narrow);
      }
      parts[static_cast<std::size_t>(block)] = total;
    };
  });
  for (const double part : parts) *sums.tile(0, 0) += part;
  if (rest.means.data) *sums.tile(0, 0) -= rest.weight * squared_norm(rest.means.data, a.width);
}

/// Where the moments of the terms go: sums of products about the mean, the mean and its tail.
struct Moments {
  TileSums& tiles;
  View2<double> mean, tail;
};

/// Adds the moments of the terms, products in P.
template <class P, class T>
void add_all_products(const Terms<T>& terms, const Moments& out, int threads) {
  const index_t rows = terms.rows(), coords = terms.scores.d;
  const double total = terms.total_probability();
  const Indices ends = terms.ends(), order = by_falling(ends);
  const index_t chunk = std::clamp<index_t>(
      std::min(std::max(kMeanBytes / (16 * rows), kCoords), kMostMeanBytes / (16 * rows)), 1,
      coords);
  std::vector<double> means = zeros(rows * chunk), tails = zeros(rows * chunk),
                      weight = zeros(rows);

  for (index_t d0 = 0; d0 < coords; d0 += chunk) {
    const index_t width = std::min(chunk, coords - d0);
    const LiveMeans live{contiguous(means.data(), rows, width),
                         contiguous(tails.data(), rows, width), weight.data()};
    double peak = live_means(terms, ends, order, d0, live, threads);
    index_t padded = 0, last = terms.scores.n - 1;  // rows, see above; order[last] ends next
    double missing = 0.0;  // the weight that has ended, summed: it can be far below the total
    for (index_t q = 0; q < rows; ++q) {
      for (index_t n;
           last >= 0 &&
           ends[static_cast<std::size_t>(n = order[static_cast<std::size_t>(last)])] <= q;
           --last) {
        missing += terms.probability(n);
      }
      const bool whole = missing == 0.0, centred = 8.0 * missing <= total;
      const double share = live.weight[q] / total;
      if (centred) padded = q + 1;
      for (index_t d = 0; d < width; ++d) {
        double &mean = live.mean(q, d), &tail = live.tail(q, d);
        if (out.mean.data) {
          out.mean(q, d0 + d) = whole ? mean : mean * share;
          out.tail(q, d0 + d) = whole ? tail : 0.0;
        }
        if (whole) continue;
        peak = std::max(peak, std::abs(mean));
        tail = centred ? tail * share - mean * (missing / total) : mean * share;
        if (!centred) mean = 0.0;
      }
    }
    Rest rest{{}, total};
    Indices heights = ends;
    if (missing > 0.0) {
      rest.means = contiguous<const double>(tails.data(), rows, width);
      for (index_t& height : heights) height = std::max(height, padded);
    }
    Columns<T> a{terms,
                 order,
                 heights,
                 d0,
                 width,
                 contiguous<const double>(means.data(), rows, width),
                 scale_of<P>(peak)};
    if (rows == 1 && terms.block == 1) {
      add_squares(a, rest, out.tiles, threads);
    } else {
      add_products<P>(a, rest, out.tiles, threads);
    }
  }
}

/// Rows are sums of steps: adds up coordinates [d0, d0 + width) once, for the means and the
/// products.
template <class T>
void add_block_products(const Terms<T>& terms, index_t d0, index_t width, const Moments& out,
                        int threads) {
  const index_t samples = terms.scores.n, rows = terms.rows();
  std::vector<double> blocks = zeros(samples * rows * width);
  for_each_task(samples, threads, [&] {
    return [&](index_t n) {
      for (index_t q = 0; q < rows; ++q) {
        load_row(terms, n, q, d0, width, blocks.data() + (n * rows + q) * width);
      }
    };
  });
  const double one = 1.0;
  Terms<double> summed;
  summed.scores = padded<double>(blocks.data(), samples, rows, width, rows * width, width);
  summed.weights = {&one, samples, rows, 0, 0};
  summed.steps.lengths = terms.ends();
  summed.sample_weight = terms.sample_weight;
  const auto slice = [&](View2<double> m) {
    return m.data ? View2<double>{&m(0, d0), rows, width, m.row_stride, m.col_stride} : m;
  };
  add_all_products<T>(summed, {out.tiles, slice(out.mean), slice(out.tail)}, threads);
}

}  // namespace

template <class T>
void covariance(const Terms<T>& terms, double divisor, View2<double> out, View2<double> mean,
                View2<double> tail, int threads) {
  const index_t coords = terms.scores.d, rows = terms.rows();
  TileSums tiles(rows, ceil_div(terms.scores.n * coords, kPanel));
  const Moments sums{tiles, mean, tail};
  const index_t fitting = kBlockBytes / (terms.scores.n * rows * 8);
  if (terms.block > 1 && fitting >= std::min<index_t>(coords, 64)) {
    for (index_t d0 = 0; d0 < coords; d0 += fitting) {
      add_block_products(terms, d0, std::min(fitting, coords - d0), sums, threads);
    }
  } else {
    add_all_products<T>(terms, sums, threads);
  }
  tiles.store(out, divisor, threads);
}

template void covariance(const Terms<float>&, double, View2<double>, View2<double>, View2<double>,
                         int);
template void covariance(const Terms<double>&, double, View2<double>, View2<double>, View2<double>,
                         int);

}  // namespace rlvar
