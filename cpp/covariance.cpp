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
// never multiplied. A padded step has X = 0 and Y = 0, not Y = -m; `add_ragged_part` mends that.
//
// Digits: terms are centred before they are rounded to the products' type (columns.hpp), so that a
// mean far above the spread costs none. float32 products run over at most 256 columns and are added
// to float64 sums.
#include "covariance.hpp"

#include <Eigen/Core>
#include <cmath>

#include "columns.hpp"
#include "means.hpp"
#include "parallel.hpp"
#include "ragged.hpp"
#include "tiles.hpp"

namespace rlvar {

namespace {

constexpr index_t kMeanBytes = kMiB;  // means and tails of the coordinates at hand, if these
constexpr index_t kCoords = 256;      // are not fewer than this, and at most
constexpr index_t kMostMeanBytes = 12 * kMiB;
constexpr index_t kBlockBytes = 16 * kMiB;  // sums of blocks of steps

/// sums += A A^T / scale^2, products in P.
template <class P, class T>
void add_products(const Columns<T>& a, TileSums& sums, int threads) {
  const index_t rows = a.rows_from(0);
  if (rows == 0) return;
  const double factor = 1.0 / a.scale / a.scale;
  const auto height = [&](index_t i) { return a.rows_from(i * kPanel); };
  const auto panel = [&](index_t i, P* data) {
    return Panel<P>{data, std::min(kPanel, a.count() - i * kPanel)};
  };
  multiply_in_batches<P>(
      rows, ceil_div(a.count(), kPanel), 1, sums.accumulators(), threads, height,
      [](index_t, index_t) {},
      [&](index_t i, index_t g, P* data) { pack(a, g, i * kPanel, panel(i, data)); },
      [&] {
        return [&](index_t i, P* data, index_t pair, index_t accumulator) {
          const auto [i0, j0] = Tiles::corner(pair);
          tile_product(panel(i, data), i0, j0, height(i), factor, sums.tile(accumulator, pair));
        };
      });
}

/// The same where there is one row, and panels would be mostly empty: its squares, in float64,
/// along the coordinates. Memory-bound.
template <class T>
void add_squares(const Columns<T>& a, TileSums& sums, int threads) {
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
        if (a.end(n) == 0) continue;
        const T* s = terms.scores.row(n, 0) + a.d0;
        const double w = terms.weights(n, 0), *c = &a.centre(0, 0);
        typename L::Vec squares{};
        double rest = 0.0;
        index_t d = 0;
        for (; d + L::width <= a.width; d += L::width) {
          const auto y = w * load_doubles(s + d) - L::load(c + d);
          squares += y * y;
        }
        for (; d < a.width; ++d) {
          const double y = w * static_cast<double>(s[d]) - c[d];
          rest += y * y;
        }
        total += terms.probability(n) * (sum_of(squares) + rest);
      }
      parts[static_cast<std::size_t>(block)] = total;
    };
  });
  for (const double part : parts) *sums.tile(0, 0) += part;
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
    const double peak = live_means(terms, ends, order, d0, live, threads);
    for (index_t q = 0; out.mean.data && q < rows; ++q) {
      const bool whole = weight.data()[q] == total;
      const double share = weight.data()[q] / total;
      for (index_t d = 0; d < width; ++d) {
        out.mean(q, d0 + d) = whole ? live.mean(q, d) : live.mean(q, d) * share;
        out.tail(q, d0 + d) = whole ? live.tail(q, d) : 0.0;
      }
    }
    Columns<T> a{terms,
                 order,
                 ends,
                 d0,
                 width,
                 contiguous<const double>(means.data(), rows, width),
                 scale_of<P>(peak),
                 {},
                 {}};
    if (in_float<T, P>) split_centre(a);
    if (rows == 1 && terms.block == 1) {
      add_squares(a, out.tiles, threads);
    } else {
      add_products<P>(a, out.tiles, threads);
    }
    const bool ragged = a.end(order.back()) < rows;
    if (ragged) add_ragged_part(a, live, total, out.tiles, threads);
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
  summed.scores = {blocks.data(), samples, rows, width, rows * width, width};
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

void add_product(View2<const double> x, double factor, View2<double> sums, int threads) {
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Matrix, 0, Eigen::OuterStride<>> all(x.data, x.rows, x.cols,
                                                              Eigen::OuterStride<>(x.row_stride));
  for_each_task(Tiles(x.rows).pairs, threads, [&] {
    return [&, product = Matrix()](index_t pair) mutable {
      const auto [i0, j0] = Tiles::corner(pair);
      const index_t height = std::min(kTile, x.rows - i0), width = std::min(kTile, x.rows - j0);
      product.noalias() = all.middleRows(i0, height) * all.middleRows(j0, width).transpose();
      for (index_t i = i0; i < i0 + height; ++i) {
        for (index_t j = j0; j < std::min(j0 + width, i + 1); ++j) {
          sums(j, i) = sums(i, j) += factor * product(i - i0, j - j0);
        }
      }
    };
  });
}

template void covariance(const Terms<float>&, double, View2<double>, View2<double>, View2<double>,
                         int);
template void covariance(const Terms<double>&, double, View2<double>, View2<double>, View2<double>,
                         int);

}  // namespace rlvar
