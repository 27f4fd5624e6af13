// The terms of a policy gradient, never materialised: each kernel forms the rows that it needs.
#pragma once

#include <numeric>
#include <type_traits>
#include <utility>

#include "lanes.hpp"

namespace rlvar {

/// Numbers in a cache line.
template <class T>
inline constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(T));

/// How many steps ahead to ask for rows of `count` numbers: those of one rollout are too short for
/// the hardware to see them as a stream. 0 where asking does not pay.
template <class T>
index_t prefetch_distance(index_t count) {
  if (count < kLine<T> || count > 128 * kLine<T>) return 0;
  return count <= 8 * kLine<T> ? 16 : count <= 32 * kLine<T> ? 4 : 1;
}

/// Asks for what is needed some steps later than the `count` numbers at x. Never faults, wherever
/// that may be.
template <class T>
void prefetch_steps(const T* x, index_t step_stride, index_t count) {
  const index_t ahead = prefetch_distance<T>(count) * step_stride;
  for (index_t k = 0; ahead && k < count; k += kLine<T>) __builtin_prefetch(x + ahead + k);
}

using Indices = std::vector<index_t>;

/// The scores (N, T, D), last axis contiguous: rollout n starts starts[n] numbers from `data`. Of
/// rollouts that lie one after the other, without padding, only steps below their lengths exist.
template <class T>
struct Scores {
  const T* data = nullptr;
  index_t n = 0, t = 0, d = 0;
  Indices starts;  // (N,)
  index_t t_stride = 0;

  const T* row(index_t i, index_t j) const {
    return data + starts[static_cast<std::size_t>(i)] + j * t_stride;
  }
};

/// Scores at equal distances.
template <class T>
Scores<T> padded(const T* data, index_t n, index_t t, index_t d, index_t n_stride,
                 index_t t_stride) {
  Indices starts(static_cast<std::size_t>(n));
  for (index_t i = 0; i < n; ++i) starts[static_cast<std::size_t>(i)] = i * n_stride;
  return {data, n, t, d, std::move(starts), t_stride};
}

/// The terms X[n,t,:] = weights[n,t] * scores[n,t,:], zero on steps that are not live. Row q of a
/// rollout is the sum of `block` consecutive terms; mostly, block = 1 and rows are steps.
template <class T>
struct Terms {
  Scores<T> scores;                   // (N, T, D)
  View2<const double> weights;        // (N, T)
  Steps steps;                        // live steps
  std::vector<double> sample_weight;  // (N,), or empty for ones
  index_t block = 1;

  index_t rows() const { return ceil_div(scores.t, block); }
  bool live(index_t n, index_t t) const {
    return t < steps.end(n, scores.t) && steps.unmasked(n, t);
  }
  /// Whether rows are single numbers: those of a rollout are then formed all at once.
  bool scalar(index_t width) const { return width == 1 && block == 1; }
  double probability(index_t n) const {
    return sample_weight.empty() ? 1.0 : sample_weight[static_cast<std::size_t>(n)];
  }
  double total_probability() const {
    if (sample_weight.empty()) return static_cast<double>(scores.n);
    return std::accumulate(sample_weight.begin(), sample_weight.end(), 0.0);
  }
  /// One past the last row of rollout n that holds a live step.
  index_t end(index_t n) const {
    index_t last = steps.end(n, scores.t);
    while (last > 0 && !steps.unmasked(n, last - 1)) --last;
    return ceil_div(last, block);
  }
  /// Nanoseconds, roughly, of one pass over the scores.
  double pass() const { return 0.3 * static_cast<double>(scores.n * scores.t * scores.d); }
  Indices ends() const {
    Indices result(static_cast<std::size_t>(scores.n));
    for (index_t n = 0; n < scores.n; ++n) result[static_cast<std::size_t>(n)] = end(n);
    return result;
  }
};

/// All rollouts, those with the largest end first.
inline Indices by_falling(const Indices& ends) {
  Indices order(ends.size());
  std::iota(order.begin(), order.end(), index_t(0));
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    return ends[static_cast<std::size_t>(a)] > ends[static_cast<std::size_t>(b)];
  });
  return order;
}

/// x += w s for steps t to t + Count - 1 of rollout n, all live.
template <int Count, class T>
void add_steps(const Terms<T>& terms, index_t n, index_t t, index_t d0, index_t width, double* x) {
  const T* s[Count];
  double w[Count];
  for (int k = 0; k < Count; ++k) {
    s[k] = terms.scores.row(n, t + k) + d0;
    w[k] = terms.weights(n, t + k);
    prefetch_steps(s[k], terms.scores.t_stride, width);
  }
  using L = Lanes<double>;
  index_t d = 0;
  for (; d + L::width <= width; d += L::width) {
    auto sum = L::load(x + d);
#pragma GCC unroll 4
    for (int k = 0; k < Count; ++k) sum += w[k] * load_doubles(s[k] + d);
    L::store(sum, x + d);
  }
  for (; d < width; ++d) {
    for (int k = 0; k < Count; ++k) x[d] += w[k] * static_cast<double>(s[k][d]);
  }
}

/// x = coordinates [d0, d0 + width) of row q of rollout n.
template <class T>
void load_row(const Terms<T>& terms, index_t n, index_t q, index_t d0, index_t width, double* x) {
  std::fill(x, x + width, 0.0);
  const index_t end = std::min((q + 1) * terms.block, terms.scores.t);
  for (index_t t = q * terms.block; t < end;) {
    index_t live = 0;
    while (live < 4 && t + live < end && terms.live(n, t + live)) ++live;
    if (live == 4) {
      add_steps<4>(terms, n, t, d0, width, x);
    } else {
      for (index_t k = 0; k < live; ++k) add_steps<1>(terms, n, t + k, d0, width, x);
    }
    t += std::max<index_t>(live, 1);
  }
}

/// x[q - q0] = coordinate d0 of rows q0 to q1 - 1 of rollout n, where rows are single numbers.
template <class T>
void load_scalars(const Terms<T>& terms, index_t n, index_t q0, index_t q1, index_t d0, double* x) {
  const T* s = terms.scores.row(n, 0) + d0;
  const double* w = &terms.weights(n, 0);
  if (!terms.steps.mask.data && q1 <= terms.steps.end(n, q1) && terms.scores.t_stride == 1 &&
      terms.weights.col_stride == 1) {
    for (index_t q = q0; q < q1; ++q) x[q - q0] = w[q] * static_cast<double>(s[q]);
    return;
  }
  const index_t end = std::clamp(terms.steps.end(n, terms.scores.t), q0, q1);
  for (index_t q = q0; q < end; ++q) {
    const double term = terms.weights(n, q) * static_cast<double>(s[q * terms.scores.t_stride]);
    x[q - q0] = terms.steps.unmasked(n, q) ? term : 0.0;
  }
  std::fill(x + (end - q0), x + (q1 - q0), 0.0);
}

}  // namespace rlvar
