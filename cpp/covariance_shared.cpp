// Second moments of E sets of weights. Arithmetic: the product S_n S_n^T of each rollout once,
// D*L_n*(L_n+1) flops, then 1.5 L_n (L_n+1) for each set; bytes: the scores once. Sets share what
// would cost them E times D otherwise.
//
// Panels hold the scores of one rollout as they are, no mean taken away. A task is one tile: its
// product goes to a tile of its own in the cache, and from there, weighted, to each result.
#include "covariance.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace rlvar {

namespace {

/// Largest |score| of the live steps of rollout n.
template <class T>
double largest_score(const Terms<T>& terms, index_t n) {
  using L = Lanes<double>;
  auto largest = L::fill(0.0);
  double rest = 0.0;
  for (index_t t = 0; t < terms.scores.t; ++t) {
    if (!terms.live(n, t)) continue;
    const T* s = terms.scores.row(n, t);
    index_t d = 0;
    for (; d + L::width <= terms.scores.d; d += L::width) {
      largest = L::larger(largest, load_doubles(s + d));
    }
    for (; d < terms.scores.d; ++d) rest = std::max(rest, std::abs(static_cast<double>(s[d])));
  }
  return std::max(max_of(largest), rest);
}

/// Packs row group g of columns [c0, c0 + panel.columns) of a rollout's scores, times `scale`.
template <class T>
void pack_scores(const Terms<T>& terms, index_t n, index_t end, index_t g, index_t c0, double scale,
                 const Panel<T>& panel) {
  constexpr index_t lanes = Panel<T>::lanes;
  const T factor = static_cast<T>(scale);
  alignas(64) Rows<T> rows;
  for (index_t r = 0; r < lanes; ++r) {
    const index_t t = g * lanes + r;
    if (t < end && terms.steps.unmasked(n, t)) {
      const T* s = terms.scores.row(n, t) + c0;
      for (index_t k = 0; k < panel.columns; ++k) rows[r][k] = s[k] * factor;
    } else {
      std::fill_n(rows[r], panel.columns, T(0));
    }
  }
  store_group(rows, g, panel);
}

/// sums[e](i, j) += w[e,n,i] w[e,n,j] product(i, j) in one tile, for rollout n.
void add_weighted(View2<const double> product, View3<const double> weights, const Steps& steps,
                  index_t n, index_t i0, index_t j0, index_t end, double* sums, index_t rows) {
  double left[kTile], right[kTile];
  const index_t height = std::min(kTile, end - i0), width = std::min(kTile, end - j0);
  for (index_t e = 0; e < weights.n; ++e) {
    const double* w = weights.row(e, n);
    for (index_t i = 0; i < height; ++i) left[i] = steps.unmasked(n, i0 + i) ? w[i0 + i] : 0.0;
    for (index_t j = 0; j < width; ++j) right[j] = steps.unmasked(n, j0 + j) ? w[j0 + j] : 0.0;
    for (index_t i = 0; i < height; ++i) {
      double* __restrict to = sums + (e * rows + i0 + i) * rows + j0;
      const double* __restrict from = &product(i, 0);
      const index_t count = std::min(width, i0 + i - j0 + 1);
      for (index_t j = 0; j < count; ++j) to[j] += left[i] * from[j] * right[j];
    }
  }
}

}  // namespace

template <class T>
void shared_moments(const Terms<T>& terms, View3<const double> weights, double* sums, int threads) {
  const index_t samples = terms.scores.n, rows = terms.scores.t, coords = terms.scores.d;
  const index_t size = weights.n * rows * rows;  // of all results
  const Indices ends = terms.ends(), order = by_falling(ends);
  const index_t accumulators = accumulators_for(rows, weights.n, samples / 8);
  std::vector<double> extra = zeros((accumulators - 1) * size);
  const auto sums_of = [&](index_t accumulator) {
    return accumulator == 0 ? sums : extra.data() + (accumulator - 1) * size;
  };
  for_each_task(weights.n * rows, threads,
                [&] { return [&](index_t i) { std::fill_n(sums + i * rows, rows, 0.0); }; });

  const index_t panels = ceil_div(coords, kPanel);
  std::vector<double> scales = zeros(samples);  // of order[i]'s scores
  const auto rollout = [&](index_t i) { return order[static_cast<std::size_t>(i)]; };
  const auto height = [&](index_t i) { return ends[static_cast<std::size_t>(rollout(i))]; };
  const auto scale = [&](index_t i) -> double& { return scales[static_cast<std::size_t>(i)]; };
  const auto panel = [&](index_t k, T* data) {
    return Panel<T>{data + k * Panel<T>::size(rows), std::min(kPanel, coords - k * kPanel)};
  };
  multiply_in_batches<T>(
      rows, samples, panels, accumulators, threads, height,
      [&](index_t first, index_t last) {
        for_each_task(last - first, threads, [&] {
          return [&](index_t i) {
            scale(first + i) = scale_of<T>(largest_score(terms, rollout(first + i)));
          };
        });
      },
      [&](index_t i, index_t g, T* data) {
        for (index_t k = 0; k < panels; ++k) {
          pack_scores(terms, rollout(i), height(i), g, k * kPanel, scale(i), panel(k, data));
        }
      },
      [&] {
        return [&, tile = zeros(kTile * kTile)](index_t i, T* data, index_t pair,
                                                index_t accumulator) mutable {
          const auto [i0, j0] = Tiles::corner(pair);
          const double factor = terms.probability(rollout(i)) / scale(i) / scale(i);
          std::fill(tile.begin(), tile.end(), 0.0);
          for (index_t k = 0; k < panels; ++k) {
            tile_product(panel(k, data), i0, j0, height(i), factor, tile.data());
          }
          add_weighted(contiguous<const double>(tile.data(), kTile, kTile), weights, terms.steps,
                       rollout(i), i0, j0, height(i), sums_of(accumulator), rows);
        };
      });
  for (index_t accumulator = 1; accumulator < accumulators; ++accumulator) {
    const double* from = sums_of(accumulator);
    for (index_t i = 0; i < size; ++i) sums[i] += from[i];
  }
}

template void shared_moments(const Terms<float>&, View3<const double>, double*, int);
template void shared_moments(const Terms<double>&, View3<const double>, double*, int);

}  // namespace rlvar
