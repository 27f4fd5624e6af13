// Reads each live score once, four rollouts at a time: memory-bound.
//
// Sums differences to the terms of the first rollout that is live there, whose rounding is that of
// the spread: a mean far above the spread costs no digits, and equal terms have exactly their value
// as mean.
#include "means.hpp"

#include <cmath>

#include "lanes.hpp"
#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kTaskCoords = 512;    // at most so many coordinates in one task
constexpr index_t kTaskNumbers = 8192;  // means of one task: with their origins, in the L2 cache
constexpr index_t kTogether = 4;        // rollouts

/// One task: rows [q0, q1), coordinates [d0, d0 + width), whose means lie at column `column`.
template <class T>
struct MeanTask {
  using L = Lanes<double>;
  const Terms<T>& terms;
  const Indices& ends;
  const Indices& order;
  const LiveMeans& out;
  index_t q0, q1, d0, column, width;
  std::vector<double> origins = zeros((q1 - q0) * width), row = zeros(width);
  double peak = 0.0;

  index_t end(index_t n) const { return ends[static_cast<std::size_t>(n)]; }
  double* origin(index_t q) { return origins.data() + (q - q0) * width; }

  /// Adds p (w s - origin) for Count rows s to the sum of row q.
  template <int Count, class S>
  void add(const S* const* s, const double* w, const double* p, index_t q) {
    const double* o = origin(q);
    double* sum = &out.mean(q, column);
    L::Vec largest = L::fill(peak);
    index_t d = 0;
    for (; d + L::width <= width; d += L::width) {
      const auto from = L::load(o + d);
      auto total = L::load(sum + d);
#pragma GCC unroll 4
      for (int k = 0; k < Count; ++k) {
        const auto y = w[k] * load_doubles(s[k] + d) - from;
        total += p[k] * y;
        largest = L::larger(largest, y);
      }
      L::store(total, sum + d);
    }
    peak = max_of(largest);
    for (; d < width; ++d) {
      for (int k = 0; k < Count; ++k) {
        const double y = w[k] * static_cast<double>(s[k][d]) - o[d];
        sum[d] += p[k] * y;
        peak = std::max(peak, std::abs(y));
      }
    }
  }

  /// Adds the `count` rollouts, all of which reach row q.
  void add_rollouts(const index_t* rollouts, index_t count, index_t q) {
    const T* s[kTogether];
    double w[kTogether], p[kTogether];
    bool steps = terms.block == 1;
    for (index_t k = 0; k < count; ++k) {
      const index_t n = rollouts[k];
      steps = steps && terms.live(n, q);
      s[k] = terms.scores.row(n, q) + d0;
      w[k] = terms.weights(n, q);
      p[k] = terms.probability(n);
    }
    if (steps && count == kTogether) return add<kTogether>(s, w, p, q);
    for (index_t k = 0; k < count; ++k) {
      const double *x = row.data(), one = 1.0;
      load_row(terms, rollouts[k], q, d0, width, row.data());
      add<1>(&x, &one, p + k, q);
    }
  }

  void run() {
    std::vector<double> weight = zeros(q1 - q0);
    for (index_t q = q0; q < q1; ++q) {
      std::fill(&out.mean(q, column), &out.mean(q, column) + width, 0.0);
    }
    for (index_t first = 0; first < terms.scores.n; first += kTogether) {
      const index_t* rollouts = order.data() + first;
      index_t count = std::min(kTogether, terms.scores.n - first);
      for (index_t q = q0; q < q1; ++q) {
        while (count > 0 && end(rollouts[count - 1]) <= q) --count;
        if (count == 0) break;
        double& before = weight.data()[q - q0];
        if (before == 0.0) load_row(terms, rollouts[0], q, d0, width, origin(q));
        add_rollouts(rollouts, count, q);
        for (index_t k = 0; k < count; ++k) before += terms.probability(rollouts[k]);
      }
    }
    for (index_t q = q0; q < q1; ++q) {
      const double total = weight.data()[q - q0];
      double* mean = &out.mean(q, column);
      double* tail = out.tail.data ? &out.tail(q, column) : row.data();
      const double* o = origin(q);
      for (index_t d = 0; d < width; ++d) {
        const double shift = total == 0.0 ? 0.0 : mean[d] / total;
        mean[d] = o[d] + shift;
        tail[d] =
            std::abs(o[d]) >= std::abs(shift) ? (o[d] - mean[d]) + shift : (shift - mean[d]) + o[d];
      }
      if (column == 0) out.weight[q] = total;
    }
  }
};

}  // namespace

template <class T>
double live_means(const Terms<T>& terms, const Indices& ends, const Indices& order, index_t d0,
                  const LiveMeans& out, int threads) {
  const index_t rows = out.mean.rows, coords = out.mean.cols;
  const index_t width = std::min(coords, kTaskCoords);
  const index_t height = std::max<index_t>(1, kTaskNumbers / width);
  const index_t across = ceil_div(coords, width), down = ceil_div(rows, height);
  std::vector<double> peaks = zeros(across * down);
  for_each_task(across * down, threads, [&] {
    return [&](index_t i) {
      const index_t q0 = i / across * height, column = i % across * width;
      MeanTask<T> task{terms,       ends,   order,
                       out,         q0,     std::min(q0 + height, rows),
                       d0 + column, column, std::min(width, coords - column)};
      task.run();
      peaks[static_cast<std::size_t>(i)] = task.peak;
    };
  });
  const double peak = *std::max_element(peaks.begin(), peaks.end());
  return std::isfinite(peak) ? peak : 0.0;
}

template <class T>
void means(const Terms<T>& terms, View2<double> mean, int threads) {
  const Indices ends = terms.ends();
  std::vector<double> weight = zeros(mean.rows);
  live_means(terms, ends, by_falling(ends), 0, {mean, {}, weight.data()}, threads);
  const double total = terms.total_probability();
  for (index_t q = 0; q < mean.rows; ++q) {
    const double reached = weight.data()[q];
    if (reached == total) continue;
    for (index_t d = 0; d < mean.cols; ++d) mean(q, d) *= reached / total;
  }
}

#define RLVAR_INSTANTIATE(T)                                                           \
  template double live_means(const Terms<T>&, const Indices&, const Indices&, index_t, \
                             const LiveMeans&, int);                                   \
  template void means(const Terms<T>&, View2<double>, int);
RLVAR_INSTANTIATE(float)
RLVAR_INSTANTIATE(double)
#undef RLVAR_INSTANTIATE

}  // namespace rlvar
