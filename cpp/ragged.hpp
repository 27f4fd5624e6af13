// What rollouts of unequal lengths add to the covariance.
#pragma once

#include "columns.hpp"
#include "means.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace rlvar {

constexpr index_t kRaggedRows = 16;  // rows of one task of the ragged part: a tile has whole tasks

/// out[v][r] = x[r, :] . y[v] for as many rows of x, `width` long each, as a vector has lanes.
template <int Vectors>
void dots(const double* x, const double* const* y, index_t width, double* const* out) {
  using L = Lanes<double>;
  constexpr int rows = static_cast<int>(L::width);
  typename L::Vec sums[Vectors][rows] = {};
  index_t d = 0;
  for (; d + rows <= width; d += rows) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const auto left = L::load(x + r * width + d);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[v][r] += left * L::load(y[v] + d);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    L::transpose(sums[v]);
#pragma GCC unroll 4
    for (int r = 1; r < rows; ++r) sums[v][0] += sums[v][r];
    L::store(sums[v][0], out[v]);
    for (index_t k = d; k < width; ++k) {
      for (int r = 0; r < rows; ++r) out[v][r] += x[r * width + k] * y[v][k];
    }
  }
}

/// to += p (X - c) for row q of rollout n; `scratch` holds a row.
template <class T>
void add_centred(const Columns<T>& a, index_t n, index_t q, double* scratch, double* to) {
  using L = Lanes<double>;
  const double p = a.terms.probability(n);
  const double* c = &a.centre(q, 0);
  if (a.terms.block > 1 || !a.terms.steps.unmasked(n, q)) {
    load_row(a.terms, n, q, a.d0, a.width, scratch);
    for (index_t d = 0; d < a.width; ++d) to[d] += p * (scratch[d] - c[d]);
    return;
  }
  const T* s = a.terms.scores.row(n, q) + a.d0;
  const double w = a.terms.weights(n, q);
  prefetch_steps(s, a.terms.scores.t_stride, a.width);
  index_t d = 0;
  for (; d + L::width <= a.width; d += L::width) {
    const auto y = w * load_doubles(s + d) - L::load(c + d);
    L::store(L::load(to + d) + p * y, to + d);
  }
  for (; d < a.width; ++d) to[d] += p * (w * static_cast<double>(s[d]) - c[d]);
}

/// What centring by the means over the live rollouts leaves out.
///
/// With c[i] that mean and e[i] what rounding took from it, P[i] the weight of the rollouts that
/// reach row i, Q[i] that of the others and P that of all, a row's mean is (c[i] + e[i]) P[i] / P.
/// For i <= j, since a rollout that reaches j reaches i, and but for terms of the order of e^2,
///   sum_n p (X_i - m_i)(X_j - m_j) = sum_n p Y_i Y_j + H[i,j] c[j],
///   H[i,j] = P[j] Q[i] / P c[i] + Q[j] / P P[i] e[i] - sum over n with i < end[n] <= j of p Y_i
///          = P[j] Q[i] / P c[i] - P[j] / P P[i] e[i] + sum over n with j < end[n] of p Y_i,
/// the first where most of the weight reaches j, the second where little does: neither is then a
/// difference of large numbers. H changes with j only where rollouts end. O(N T D) to keep it, T^2
/// D flops for the products with c.
template <class T>
void add_ragged_part(const Columns<T>& a, const LiveMeans& live, double total, TileSums& sums,
                     int threads) {
  const index_t longest = a.rows_from(0), samples = a.terms.scores.n, width = a.width;
  if (total == 0.0) return;
  const auto end = [&](index_t k) { return a.end(a.order[static_cast<std::size_t>(k)]); };
  const index_t shortest = end(samples - 1);
  // Q, summed and not subtracted from the total: it can be many orders of magnitude below.
  std::vector<double> others = zeros(longest);
  double* missing = others.data();
  double weight = 0.0;
  for (index_t q = 0, k = samples - 1; q < longest; ++q) {
    for (; end(k) <= q; --k) weight += a.terms.probability(a.order[static_cast<std::size_t>(k)]);
    missing[q] = weight;
  }
  index_t middle = shortest;  // from here on, most of the weight has ended
  while (middle < longest && missing[middle] <= live.weight[middle]) ++middle;

  for_each_task(ceil_div(longest, kRaggedRows), threads, [&] {
    return [&, gone = zeros(kRaggedRows * width), h = zeros(kRaggedRows * width),
            x = zeros(width)](index_t task) mutable {
      const index_t i0 = task * kRaggedRows, i1 = std::min(i0 + kRaggedRows, longest);
      bool changed = true;
      const auto add = [&](index_t k) {  // rollout order[k] ends, or from above begins
        const index_t n = a.order[static_cast<std::size_t>(k)];
        for (index_t i = i0; i < std::min(i1, a.end(n)); ++i) {
          double* to = gone.data() + (i - i0) * width;
          add_centred(a, n, i, x.data(), to);
        }
        changed = true;
      };
      const auto emit = [&](index_t j, index_t count, double sign) {  // rows j, or j and j + 1
        for (index_t i = i0; changed && i < i1; ++i) {
          const double of_mean = live.weight[j] * (missing[i] / total);
          const double other = sign < 0.0 ? missing[j] : live.weight[j];
          const double of_tail = -sign * live.weight[i] * (other / total);
          const double *c = &a.centre(i, 0), *e = &live.tail(i, 0);
          const double* y = gone.data() + (i - i0) * width;
          double* to = h.data() + (i - i0) * width;
          for (index_t d = 0; d < width; ++d) {
            to[d] = (of_mean * c[d] + sign * y[d]) + of_tail * e[d];
          }
        }
        changed = false;
        const double* c[2] = {&a.centre(j, 0), count == 2 ? &a.centre(j + 1, 0) : nullptr};
        double products[2][kRaggedRows];
        for (index_t i = 0; i < i1 - i0; i += Lanes<double>::width) {
          double* to[2] = {products[0] + i, products[1] + i};
          count == 2 ? dots<2>(h.data() + i * width, c, width, to)
                     : dots<1>(h.data() + i * width, c, width, to);
        }
        for (index_t k = 0; k < count; ++k) {
          double* to = sums.at(j + k, i0);
          for (index_t i = i0; i < std::min(i1, j + k + 1); ++i) to[i - i0] += products[k][i - i0];
        }
      };
      // Two rows at a time where no rollout ends between them: they share what is read of h.
      index_t k = samples - 1;
      while (end(k) <= i0) --k;
      std::fill(gone.begin(), gone.end(), 0.0);
      for (index_t j = std::max(i0, shortest), count; j < middle; j += count) {
        for (; end(k) <= j; --k) add(k);
        count = j + 1 < middle && end(k) > j + 1 ? 2 : 1;
        emit(j, count, -1.0);
      }
      k = 0;
      changed = true;
      std::fill(gone.begin(), gone.end(), 0.0);
      for (index_t j = longest - 1, count; j >= std::max(i0, middle); j -= count) {
        for (; k < samples && end(k) > j; ++k) add(k);
        count = j - 1 >= std::max(i0, middle) && (k == samples || end(k) <= j - 1) ? 2 : 1;
        emit(j - count + 1, count, 1.0);
      }
    };
  });
}

}  // namespace rlvar
