// Reads each live score once, four rollouts at a time: memory-bound.
//
// Sums differences to the terms of the first rollout that is live there, whose rounding is that of
// the spread: a mean far above the spread costs no digits, and equal terms have exactly their value
// as mean.
#include "means.hpp"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kTaskCoords = 512;    // at most so many coordinates in one task
constexpr index_t kTaskNumbers = 4096;  // means of one task: with their origins, in the L2 cache
constexpr index_t kTogether = 4;        // rollouts

/// max |x| of numbers whose magnitude orders like their bits.
template <class T>
double largest(const T* x, index_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  Bits bits = 0;
  for (index_t i = 0; i < count; ++i) {
    Bits b;
    std::memcpy(&b, x + i, sizeof b);
    bits = std::max<Bits>(bits, b & std::numeric_limits<Bits>::max());
  }
  T result;
  std::memcpy(&result, &bits, sizeof result);
  return static_cast<double>(result);
}

/// One task: rows [q0, q1), coordinates [d0, d0 + width), whose means lie at column `column`.
template <class T>
struct MeanTask {
  const Terms<T>& terms;
  const Indices& ends;
  const Indices& order;
  const LiveMeans& out;
  index_t q0, q1, d0, column, width;
  std::vector<double> origins = zeros((q1 - q0) * width), row = zeros(width);
  double peak = 0.0;

  index_t end(index_t n) const { return ends[static_cast<std::size_t>(n)]; }
  double* origin(index_t q) { return origins.data() + (q - q0) * width; }

  void add(index_t n, index_t q, double weight_before) {
    const double p = terms.probability(n);
    double* x = row.data();
    load_row(terms, n, q, d0, width, x);
    peak = std::max(peak, largest(x, width));
    double *o = origin(q), *sum = &out.mean(q, column);
    if (weight_before == 0.0) {
      std::copy(x, x + width, o);
    } else {
      for (index_t d = 0; d < width; ++d) sum[d] += p * (x[d] - o[d]);
    }
  }

  /// Four rollouts that are live at step q.
  void add_four(const index_t* rollouts, index_t q) {
    const T* s[kTogether];
    double w[kTogether], p[kTogether];
    for (index_t k = 0; k < kTogether; ++k) {
      const index_t n = rollouts[k];
      s[k] = terms.scores.row(n, q) + d0;
      w[k] = terms.weights(n, q);
      p[k] = terms.probability(n);
      peak = std::max(peak, std::abs(w[k]) * largest(s[k], width));
    }
    const double* o = origin(q);
    double* sum = &out.mean(q, column);
    for (index_t d = 0; d < width; ++d) {
      sum[d] += (p[0] * (w[0] * static_cast<double>(s[0][d]) - o[d]) +
                 p[1] * (w[1] * static_cast<double>(s[1][d]) - o[d])) +
                (p[2] * (w[2] * static_cast<double>(s[2][d]) - o[d]) +
                 p[3] * (w[3] * static_cast<double>(s[3][d]) - o[d]));
    }
  }

  void run() {
    std::vector<double> weight = zeros(q1 - q0);
    for (index_t q = q0; q < q1; ++q)
      std::fill(&out.mean(q, column), &out.mean(q, column) + width, 0.0);
    for (index_t first = 0; first < terms.scores.n; first += kTogether) {
      const index_t count = std::min(kTogether, terms.scores.n - first);
      const index_t* rollouts = order.data() + first;
      for (index_t q = q0; q < std::min(q1, end(rollouts[0])); ++q) {
        double& before = weight.data()[q - q0];
        bool four = terms.block == 1 && count == kTogether && before != 0.0;
        for (index_t k = 0; four && k < count; ++k) four = terms.live(rollouts[k], q);
        if (four) add_four(rollouts, q);
        for (index_t k = 0; k < count && q < end(rollouts[k]); ++k) {
          if (!four) add(rollouts[k], q, before);
          before += terms.probability(rollouts[k]);
        }
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
