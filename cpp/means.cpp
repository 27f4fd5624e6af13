// Reads each live score once, four rollouts at a time: memory-bound.
//
// Sums differences to the terms of the longest rollout, whose rounding is that of the spread: a
// mean far above the spread costs no digits, and equal terms have exactly their value as mean.
// Blocks of rollouts have sums of their own where there are few means, added up in order.
#include "means.hpp"

#include <cmath>

#include "lanes.hpp"
#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kTaskCoords = 512;    // at most so many coordinates in one task
constexpr index_t kTaskNumbers = 8192;  // means of one task: with their origins, in the L2 cache
constexpr index_t kTasks = 16;          // wanted, where there are rollouts for them
constexpr index_t kTogether = 4;        // rollouts
using L = Lanes<double>;

/// sum += p (w s - origin) for Count rows s of `length` numbers. Returns the largest |w s - origin|
/// or `peak`.
template <int Count, class S>
double add_rows(const S* const* s, const double* w, const double* p, const double* origin,
                index_t length, double* sum, double peak) {
  L::Vec largest = L::fill(peak);
  index_t d = 0;
  for (; d + L::width <= length; d += L::width) {
    const auto from = L::load(origin + d);
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
  for (; d < length; ++d) {
    for (int k = 0; k < Count; ++k) {
      const double y = w[k] * static_cast<double>(s[k][d]) - origin[d];
      sum[d] += p[k] * y;
      peak = std::max(peak, std::abs(y));
    }
  }
  return peak;
}

/// Rows [q0, q1) and coordinates [d0, d0 + width) of the rollouts order[first] .. order[last - 1].
template <class T>
struct MeanTask {
  const Terms<T>& terms;
  const Indices& ends;
  const Indices& order;
  index_t q0, q1, d0, width;
  const double* origins;  // (q1 - q0, width)
  double* sums;           // the same
  std::vector<double> rows = zeros(terms.scalar(width) ? q1 - q0 : width);
  double peak = 0.0;

  /// Adds `count` rollouts, all of which reach row q.
  void add(const index_t* rollouts, index_t count, index_t q) {
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
    const index_t at = (q - q0) * width;
    if (steps && count == kTogether) {
      peak = add_rows<kTogether>(s, w, p, origins + at, width, sums + at, peak);
      return;
    }
    for (index_t k = 0; k < count; ++k) {
      const double *x = rows.data(), one = 1.0;
      load_row(terms, rollouts[k], q, d0, width, rows.data());
      peak = add_rows<1>(&x, &one, p + k, origins + at, width, sums + at, peak);
    }
  }

  void run(index_t first, index_t last) {
    const auto end = [&](index_t n) { return std::min(q1, ends[static_cast<std::size_t>(n)]); };
    if (terms.scalar(width)) {  // all rows of a rollout at once
      for (index_t i = first; i < last; ++i) {
        const index_t n = order[static_cast<std::size_t>(i)];
        if (end(n) <= q0) break;
        const double *x = rows.data(), one = 1.0, p = terms.probability(n);
        load_scalars(terms, n, q0, end(n), d0, rows.data());
        peak = add_rows<1>(&x, &one, &p, origins, end(n) - q0, sums, peak);
      }
      return;
    }
    for (; first < last; first += kTogether) {
      const index_t* rollouts = order.data() + first;
      index_t count = std::min(kTogether, last - first);
      for (index_t q = q0; q < q1; ++q) {
        while (count > 0 && end(rollouts[count - 1]) <= q) --count;
        if (count == 0) break;
        add(rollouts, count, q);
      }
    }
  }
};

/// weight[q] = sum of p[n] over the rollouts that reach row q; exactly the total where all do.
template <class T>
void reaching_weights(const Terms<T>& terms, const Indices& ends, const Indices& order,
                      index_t rows, double* weight) {
  const auto end = [&](std::size_t i) { return ends[static_cast<std::size_t>(order[i])]; };
  const double total = terms.total_probability();
  double sum = 0.0;
  std::size_t next = 0;
  for (index_t q = rows - 1; q >= 0; --q) {
    for (; next < order.size() && end(next) > q; ++next) sum += terms.probability(order[next]);
    weight[q] = next == order.size() ? total : sum;
  }
}

}  // namespace

template <class T>
double live_means(const Terms<T>& terms, const Indices& ends, const Indices& order, index_t d0,
                  const LiveMeans& out, int threads) {
  const index_t rows = out.mean.rows, coords = out.mean.cols, samples = terms.scores.n;
  const index_t width = std::min(coords, kTaskCoords);
  const index_t height = std::min(rows, std::max<index_t>(1, kTaskNumbers / width));
  const index_t across = ceil_div(coords, width), places = across * ceil_div(rows, height);
  const index_t blocks = std::clamp<index_t>(std::min(kTasks / places, samples / 64), 1, kTasks);
  reaching_weights(terms, ends, order, rows, out.weight);

  const index_t size = height * width;
  std::vector<double> sums = zeros(blocks > 1 ? blocks * places * size : 0);
  std::vector<double> peaks = zeros(blocks * places);
  const auto place = [&](index_t i, auto&& work) {  // rows, coordinates and origins of one place
    const index_t q0 = i / across * height, column = i % across * width;
    const index_t q1 = std::min(q0 + height, rows), own = std::min(width, coords - column);
    std::vector<double> origins = zeros(size);
    for (index_t q = q0; q < q1; ++q) {
      load_row(terms, order[0], q, d0 + column, own, origins.data() + (q - q0) * own);
    }
    work(q0, q1, column, own, origins.data());
  };
  const auto finish = [&](index_t q0, index_t q1, index_t column, index_t own,
                          const double* origins, const double* sum) {
    for (index_t q = q0; q < q1; ++q) {
      const double weight = out.weight[q];
      for (index_t d = 0; d < own; ++d) {
        const index_t k = (q - q0) * own + d;
        const double origin = weight == 0.0 ? 0.0 : origins[k];
        const double shift = weight == 0.0 ? 0.0 : sum[k] / weight, mean = origin + shift;
        out.mean(q, column + d) = mean;
        if (out.tail.data) {  // what rounding took from the sum
          out.tail(q, column + d) = std::abs(origin) >= std::abs(shift) ? (origin - mean) + shift
                                                                        : (shift - mean) + origin;
        }
      }
    }
  };
  for_each_task(blocks * places, threads, [&] {
    return [&, alone = std::vector<double>()](index_t task) mutable {
      place(task / blocks,
            [&](index_t q0, index_t q1, index_t column, index_t own, const double* origins) {
              const index_t block = task % blocks;
              if (blocks == 1) alone = zeros(size);
              double* sum = blocks == 1 ? alone.data() : sums.data() + task * size;
              MeanTask<T> means{terms, ends, order, q0, q1, d0 + column, own, origins, sum};
              means.run(samples * block / blocks, samples * (block + 1) / blocks);
              peaks[static_cast<std::size_t>(task)] = means.peak;
              if (blocks == 1) finish(q0, q1, column, own, origins, sum);
            });
    };
  });
  for (index_t i = 0; blocks > 1 && i < places; ++i) {
    double* sum = sums.data() + i * blocks * size;
    for (index_t block = 1; block < blocks; ++block) {
      for (index_t k = 0; k < size; ++k) sum[k] += sum[block * size + k];
    }
    place(i, [&](index_t q0, index_t q1, index_t column, index_t own, const double* origins) {
      finish(q0, q1, column, own, origins, sum);
    });
  }
  const double peak = *std::max_element(peaks.begin(), peaks.end());
  return std::isfinite(peak) ? peak : 0.0;
}

template <class T>
void means(const Terms<T>& terms, View2<double> mean, int threads) {
  const Indices ends = terms.ends();
  threads = threads_for(terms.pass(), threads);
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
