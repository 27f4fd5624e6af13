// Arithmetic: N*D*T*(T+1) flops (the symmetric half of sum_n X_n X_n^T), in Eigen's products.
// Bytes: the scores are read once for the mean and ceil(T / 512) times for the products.
//
// Written as matrices, C = A A^T with A = [X_1 - m | X_2 - m | ...] of shape (T, N*D). Panels of A,
// 256 columns wide, are packed one at a time: weighting, masking, centring and sample weights all
// happen in the packing, so A never exists. Rows are cut into tiles of 512 and samples into blocks,
// both fixed by the shape; (block, tile pair) is the unit of work. Blocks have accumulators of
// their own, summed in order at the end.
//
// Digits: terms are formed, centred and scaled in float64, then rounded to the products' type, so
// that a mean far above the spread costs none. float32 products run over 1024 columns and are then
// added to float64 sums. The scale, a power of two, keeps squares inside float32's range.
#include "pairwise.hpp"

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kPanel = 256;    // columns packed at a time
constexpr index_t kFlush = 4;      // panels between two additions of float32 products to the sums
constexpr index_t kTile = 512;     // rows of one tile of C
constexpr index_t kMeanRows = 16;  // steps in one task of the mean
constexpr index_t kMiB = 1 << 20;
constexpr index_t kMeanBytes = 16 * kMiB;   // the mean, (T, coordinates at a time) float64
constexpr index_t kSumsBytes = 24 * kMiB;   // accumulators of all sample blocks
constexpr index_t kExtraBytes = 60 * kMiB;  // everything
constexpr index_t kMaxBlocks = 16;
constexpr index_t kBlockColumns = 2048;  // fewer columns than this are not worth a block

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using SumsMap = Eigen::Map<RowMajor<double>, 0, Eigen::OuterStride<>>;

/// Terms of a range of coordinates, with what their packing needs.
template <class T>
struct Centred {
  const Terms<T>& terms;
  index_t d0, d1;            // coordinates [d0, d1)
  View2<const double> mean;  // (T, d1 - d0)
  double scale;
};

/// mean[t,d] = sum_n p[n] X[n,t,d0+d] / total for t in [t0, t1). Returns the largest |X|.
///
/// Sums differences to the first rollout's terms, whose rounding is that of the spread: terms that
/// are all equal get exactly their value.
template <class T>
double mean_of_steps(const Terms<T>& terms, double total, index_t d0, View2<double> mean,
                     index_t t0, index_t t1) {
  const index_t width = mean.cols;
  std::vector<double> origins = zeros((t1 - t0) * width), largest = zeros(width);
  double* peak = largest.data();
  std::fill(&mean(t0, 0), &mean(t0, 0) + (t1 - t0) * width, 0.0);
  for (index_t n = 0; n < terms.scores.n; ++n) {
    const double p = terms.probability(n);
    for (index_t t = t0; t < t1; ++t) {
      double* origin = origins.data() + (t - t0) * width;
      double* sum = &mean(t, 0);
      if (!terms.live(n, t)) {
        for (index_t d = 0; d < width; ++d) sum[d] -= p * origin[d];
        continue;
      }
      const T* s = terms.scores.row(n, t) + d0;
      const double w = terms.weights(n, t);
      if (n == 0) {
        for (index_t d = 0; d < width; ++d) origin[d] = w * static_cast<double>(s[d]);
      }
      for (index_t d = 0; d < width; ++d) {
        const double x = w * static_cast<double>(s[d]);
        sum[d] += p * (x - origin[d]);
        peak[d] = std::max(peak[d], std::abs(x));
      }
    }
  }
  for (index_t t = t0; t < t1; ++t) {
    const double* origin = origins.data() + (t - t0) * width;
    for (index_t d = 0; d < width; ++d) mean(t, d) = origin[d] + mean(t, d) / total;
  }
  return *std::max_element(peak, peak + width);
}

/// The mean of all steps. Returns the largest |X|, 0 if that is not finite.
template <class T>
double mean_terms(const Terms<T>& terms, double total, index_t d0, View2<double> mean,
                  int threads) {
  const index_t tasks = ceil_div(mean.rows, kMeanRows);
  std::vector<double> largest = zeros(tasks);
  for_each_task(tasks, threads, [&] {
    return [&](index_t task) {
      const index_t t0 = task * kMeanRows, t1 = std::min(t0 + kMeanRows, mean.rows);
      largest.data()[task] = mean_of_steps(terms, total, d0, mean, t0, t1);
    };
  });
  const double peak = *std::max_element(largest.begin(), largest.end());
  return std::isfinite(peak) ? peak : 0.0;
}

/// panel[t - t0, :] = columns [c0, c1) of rows [t0, t1) of A. Column c holds coordinate
/// d0 + c % (d1 - d0) of sample c / (d1 - d0).
template <class T>
void pack(const Centred<T>& a, index_t t0, index_t t1, index_t c0, index_t c1, RowMajor<T>& panel) {
  const index_t width = a.d1 - a.d0;
  for (index_t c = c0; c < c1;) {
    const index_t n = c / width, d = c % width;
    const index_t count = std::min(width - d, c1 - c);
    const double factor = a.scale * std::sqrt(a.terms.probability(n));
    for (index_t t = t0; t < t1; ++t) {
      const double* m = &a.mean(t, d);
      T* x = &panel(t - t0, c - c0);
      if (a.terms.live(n, t)) {
        const T* s = a.terms.scores.row(n, t) + a.d0 + d;
        const double w = a.terms.weights(n, t);
        for (index_t k = 0; k < count; ++k) {
          x[k] = static_cast<T>((w * static_cast<double>(s[k]) - m[k]) * factor);
        }
      } else {
        for (index_t k = 0; k < count; ++k) x[k] = static_cast<T>(-m[k] * factor);
      }
    }
    c += count;
  }
}

/// Adds left right^T (its lower half where left is right) to a tile of float64 sums.
template <class Left, class Right, class Sums>
void add_product(const Left& left, const Right& right, bool diagonal, Sums&& sums) {
  if (diagonal) {
    sums.template selfadjointView<Eigen::Lower>().rankUpdate(left);
  } else {
    sums.noalias() += left * right.transpose();
  }
}

/// Computes one tile of the sums over columns [c0, c1) of A.
template <class T>
struct TileWorker {
  RowMajor<T> left, right, product;

  explicit TileWorker(index_t rows, bool several)
      : left(rows, kPanel),
        right(several ? rows : 0, kPanel),
        product(std::is_same_v<T, float> ? rows : 0, rows) {}

  static index_t bytes(index_t rows) {
    // Eigen's own packed copies of the two operands come on top of ours.
    return static_cast<index_t>(sizeof(T)) * (4 * rows * kPanel + rows * rows);
  }

  void operator()(const Centred<T>& a, index_t i0, index_t i1, index_t j0, index_t j1, index_t c0,
                  index_t c1, SumsMap sums) {
    const bool diagonal = i0 == j0;
    const index_t rows = i1 - i0, cols = j1 - j0;
    index_t pending = 0;
    for (index_t c = c0; c < c1; c += kPanel) {
      const index_t width = std::min(kPanel, c1 - c);
      pack(a, i0, i1, c, c + width, left);
      if (!diagonal) pack(a, j0, j1, c, c + width, right);
      const auto l = left.block(0, 0, rows, width);
      const auto r = diagonal ? left.block(0, 0, cols, width) : right.block(0, 0, cols, width);
      if constexpr (std::is_same_v<T, double>) {
        add_product(l, r, diagonal, sums);
      } else {
        auto tile = product.block(0, 0, rows, cols);
        if (pending == 0) tile.setZero();
        add_product(l, r, diagonal, tile);
        if (++pending == kFlush || c + kPanel >= c1) {
          for (index_t i = 0; i < rows; ++i) {
            const index_t filled = diagonal ? i + 1 : cols;
            sums.row(i).head(filled) += tile.row(i).head(filled).template cast<double>();
          }
          pending = 0;
        }
      }
    }
  }
};

/// out = (sum of the blocks' sums, in order) / normaliser / scale^2, the upper half mirrored from
/// the lower. The blocks' sums follow one another, T*T apart; out may be the first of them.
void finish(const double* sums, index_t blocks, double normaliser, double scale,
            View2<double> out) {
  const index_t size = out.rows;
  constexpr index_t edge = 64;  // mirror by squares that fit the cache
  for (index_t i0 = 0; i0 < size; i0 += edge) {
    for (index_t j0 = 0; j0 <= i0; j0 += edge) {
      for (index_t i = i0; i < std::min(i0 + edge, size); ++i) {
        for (index_t j = j0; j < std::min(j0 + edge, i + 1); ++j) {
          double total = 0.0;
          for (index_t b = 0; b < blocks; ++b) total += sums[(b * size + i) * size + j];
          total = total / normaliser / scale / scale;
          out(i, j) = total;
          out(j, i) = total;
        }
      }
    }
  }
}

}  // namespace

template <class T>
void covariance(const Terms<T>& terms, double normaliser, View2<double> out, int threads) {
  const index_t samples = terms.scores.n, steps = terms.scores.t, coords = terms.scores.d;
  double total = 0.0;
  for (index_t n = 0; n < samples; ++n) total += terms.probability(n);

  // The cut of the work, from the shape alone.
  const index_t step_bytes = steps * static_cast<index_t>(sizeof(double));
  const index_t chunk = std::clamp<index_t>(kMeanBytes / step_bytes, 1, coords);
  const index_t blocks = std::clamp<index_t>(
      std::min({kSumsBytes / (step_bytes * steps), samples * chunk / kBlockColumns, kMaxBlocks}), 1,
      samples);
  const index_t tile = std::min(kTile, steps), tiles = ceil_div(steps, tile);
  const index_t pairs = tiles * (tiles + 1) / 2;

  std::vector<double> mean = zeros(steps * chunk);
  std::vector<double> extra = zeros(blocks > 1 ? blocks * steps * steps : 0);
  double* sums = blocks > 1 ? extra.data() : out.data;
  std::fill(out.data, out.data + steps * steps, 0.0);
  const index_t spare = kExtraBytes - static_cast<index_t>((mean.size() + extra.size()) * 8);
  const index_t fitting = std::max<index_t>(1, spare / TileWorker<T>::bytes(tile));
  const int workers = static_cast<int>(std::min<index_t>(threads, fitting));

  double scale = 0.0;  // of the first chunk that is not all zero
  for (index_t d0 = 0; d0 < coords; d0 += chunk) {
    const index_t d1 = std::min(d0 + chunk, coords), width = d1 - d0;
    const auto m = contiguous(mean.data(), steps, width);
    const double peak = mean_terms(terms, total, d0, m, threads);
    if (scale == 0.0 && peak > 0.0) scale = std::ldexp(1.0, std::min(-std::ilogb(peak), 1000));
    const Centred<T> a{terms, d0, d1, contiguous<const double>(mean.data(), steps, width),
                       scale == 0.0 ? 1.0 : scale};
    for_each_task(blocks * pairs, workers, [&] {
      return [&, worker = TileWorker<T>(tile, tiles > 1)](index_t task) mutable {
        const index_t block = task / pairs;
        index_t j = task % pairs, i = 0;  // tile pair j <= i, counted row by row
        while (j > i) j -= ++i;
        const index_t i0 = i * tile, i1 = std::min(i0 + tile, steps);
        const index_t j0 = j * tile, j1 = std::min(j0 + tile, steps);
        const index_t n0 = samples * block / blocks, n1 = samples * (block + 1) / blocks;
        SumsMap target(sums + (block * steps + i0) * steps + j0, i1 - i0, j1 - j0,
                       Eigen::OuterStride<>(steps));
        worker(a, i0, i1, j0, j1, n0 * width, n1 * width, target);
      };
    });
  }
  finish(sums, blocks, normaliser, scale == 0.0 ? 1.0 : scale, out);
}

template void covariance(const Terms<float>&, double, View2<double>, int);
template void covariance(const Terms<double>&, double, View2<double>, int);

}  // namespace rlvar
