// Each kernel reads every score once and does a few float64 operations on it: memory-bound work.
#include "passes.hpp"

#include "lanes.hpp"
#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kTogether = 8;    // rollouts of one task, which share what it reads of the mean
constexpr index_t kCoords = 1024;   // at most so many coordinates at a time
constexpr index_t kNumbers = 2048;  // of the mean, read by all rollouts of a task: in the L1 cache
constexpr index_t kSteps = 64;      // whose weights are kept together
constexpr index_t kRunning = 1 << 16;  // running sums of a task, if a unit is not larger

/// Adds y = w s - m (or -m) to the running sum h, both to their sums over a unit if there are any;
/// returns |y|^2 and |h|^2. Reads 4 or 8 bytes a coordinate from memory, the rest from the caches.
template <bool Live, bool Sums, class T>
std::pair<double, double> advance(const T* s, double w, const double* m, index_t width, double* h,
                                  double* y_sum, double* h_sum) {
  using L = Lanes<double>;
  typename L::Vec y_squares[2] = {}, h_squares[2] = {};
  const auto step = [&](auto y, double* at, index_t d, int k) {
    const auto sum = L::load(at) + y;
    L::store(sum, at);
    y_squares[k] += y * y;
    h_squares[k] += sum * sum;
    if constexpr (Sums) {
      L::store(L::load(y_sum + d) + y, y_sum + d);
      L::store(L::load(h_sum + d) + sum, h_sum + d);
    }
  };
  index_t d = 0;
  for (; d + 2 * L::width <= width; d += 2 * L::width) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const index_t e = d + k * L::width;
      if constexpr (Live) {
        step(w * load_doubles(s + e) - L::load(m + e), h + e, e, k);
      } else {
        step(-L::load(m + e), h + e, e, k);
      }
    }
  }
  double y_total = sum_of(y_squares[0] + y_squares[1]);
  double h_total = sum_of(h_squares[0] + h_squares[1]);
  for (; d < width; ++d) {
    const double y = Live ? w * static_cast<double>(s[d]) - m[d] : -m[d];
    h[d] += y;
    y_total += y * y;
    h_total += h[d] * h[d];
    if constexpr (Sums) {
      y_sum[d] += y;
      h_sum[d] += h[d];
    }
  }
  return {y_total, h_total};
}

/// s . v: as many chains of additions as keep up with reading s.
template <class T>
double dot(const T* s, const double* v, index_t width) {
  using L = Lanes<double>;
  typename L::Vec sums[4] = {};
  index_t d = 0;
  for (; d + 4 * L::width <= width; d += 4 * L::width) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const index_t e = d + k * L::width;
      sums[k] += load_doubles(s + e) * L::load(v + e);
    }
  }
  double total = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; d < width; ++d) total += static_cast<double>(s[d]) * v[d];
  return total;
}

/// g[e,:] += sum over Count steps of w[e,k] s[k,:], for every set e; w's rows are kSteps long. Each
/// number of the scores is loaded once, each gradient once for Count steps.
template <int Count, class T>
void add_gradients(const T* first, index_t stride, const double* w, index_t sets, index_t width,
                   double* g) {
  using L = Lanes<double>;
  const T* s[Count];
  for (int k = 0; k < Count; ++k) s[k] = first + k * stride;
  const index_t ahead = prefetch_distance<T>(width) * stride;
  index_t d = 0;
  for (; d + 2 * L::width <= width; d += 2 * L::width) {
    if (ahead && d % kLine<T> == 0) {  // a line at a time: all at once would wait for each other
      for (int k = 0; k < Count; ++k) __builtin_prefetch(s[k] + ahead + d);
    }
    typename L::Vec x[Count][2];
#pragma GCC unroll 4
    for (int k = 0; k < Count; ++k) {
      x[k][0] = load_doubles(s[k] + d);
      x[k][1] = load_doubles(s[k] + d + L::width);
    }
    for (index_t e = 0; e < sets; ++e) {
      double* to = g + e * width + d;
      auto g0 = L::load(to), g1 = L::load(to + L::width);
#pragma GCC unroll 4
      for (int k = 0; k < Count; ++k) {
        g0 += w[e * kSteps + k] * x[k][0];
        g1 += w[e * kSteps + k] * x[k][1];
      }
      L::store(g0, to);
      L::store(g1, to + L::width);
    }
  }
  for (; d < width; ++d) {
    for (index_t e = 0; e < sets; ++e) {
      for (int k = 0; k < Count; ++k) {
        g[e * width + d] += w[e * kSteps + k] * static_cast<double>(s[k][d]);
      }
    }
  }
}

/// The units [u0, u1).
template <bool Sums, class T>
void squares_of_units(const Terms<T>& terms, View2<const double> mean, const index_t* members,
                      const index_t* offsets, index_t u0, index_t u1, const UnitSquares& out) {
  const index_t steps = terms.scores.t, coords = terms.scores.d;
  const index_t rollouts = std::max<index_t>(offsets[u1] - offsets[u0], 1);
  const index_t most = std::clamp<index_t>(kRunning / rollouts, 64, std::min(coords, kCoords));
  const index_t height = std::max<index_t>(1, kNumbers / std::min(most, coords));
  for (index_t u = u0; u < u1; ++u) {
    for (double* to : {out.step, out.growth, out.step_sum, out.growth_sum}) {
      if (to) std::fill_n(to + u * steps, steps, 0.0);
    }
  }
  for (index_t d0 = 0; d0 < coords; d0 += most) {
    const index_t width = std::min(most, coords - d0);
    std::vector<double> running = zeros(rollouts * width);
    std::vector<double> sums = zeros(Sums ? 2 * height * width : 0);
    for (index_t t0 = 0; t0 < steps; t0 += height) {
      const index_t t1 = std::min(t0 + height, steps);
      for (index_t u = u0; u < u1; ++u) {
        if constexpr (Sums) std::fill(sums.begin(), sums.end(), 0.0);
        for (index_t k = offsets[u]; k < offsets[u + 1]; ++k) {
          const index_t n = members[k];
          const double p = terms.probability(n);
          double* h = running.data() + (k - offsets[u0]) * width;
          for (index_t t = t0; t < t1; ++t) {
            double* y_sum = sums.data() + 2 * (t - t0) * width;
            const double* m = &mean(t, d0);
            const T* x = terms.scores.row(n, t) + d0;
            prefetch_steps(x, terms.scores.t_stride, width);
            const auto [y, g] =
                terms.live(n, t)
                    ? advance<true, Sums>(x, terms.weights(n, t), m, width, h, y_sum, y_sum + width)
                    : advance<false, Sums>(x, 0.0, m, width, h, y_sum, y_sum + width);
            out.step[u * steps + t] += p * y;
            out.growth[u * steps + t] += p * g;
          }
        }
        for (index_t t = t0; Sums && t < t1; ++t) {
          const double* y_sum = sums.data() + 2 * (t - t0) * width;
          out.step_sum[u * steps + t] += squared_norm(y_sum, width);
          out.growth_sum[u * steps + t] += squared_norm(y_sum + width, width);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void gradients(const Terms<T>& terms, View3<const double> weights, double* out, int threads) {
  const auto& scores = terms.scores;
  const auto& steps = terms.steps;
  const index_t sets = weights.n, samples = scores.n, coords = scores.d;
  threads = threads_for(0.3 * static_cast<double>(sets * samples * scores.t * coords), threads);
  // Weights and gradients of all sets lie side by side here: in the arrays they can be powers of
  // two apart, all in one set of the cache.
  const index_t most = std::clamp<index_t>(kNumbers / std::max<index_t>(sets, 1), 64, kCoords);
  for_each_task(samples, threads, [&] {
    return [&, w = zeros(sets * kSteps), g = std::vector<double>()](index_t n) mutable {
      const index_t end = steps.end(n, scores.t);
      for (index_t d0 = 0; d0 < coords; d0 += most) {
        const index_t width = std::min(most, coords - d0);
        g.assign(static_cast<std::size_t>(sets * width), 0.0);
        for (index_t t0 = 0; t0 < end; t0 += kSteps) {
          const index_t t1 = std::min(t0 + kSteps, end);
          for (index_t e = 0; e < sets; ++e) {
            std::copy_n(weights.row(e, n) + t0, t1 - t0, w.data() + e * kSteps);
          }
          for (index_t t = t0; t < t1;) {
            index_t live = 0;
            while (live < 4 && t + live < t1 && steps.unmasked(n, t + live)) ++live;
            const T* s = scores.row(n, t) + d0;
            const double* of = w.data() + (t - t0);
            if (live == 4) {
              add_gradients<4>(s, scores.t_stride, of, sets, width, g.data());
            } else {
              for (index_t k = 0; k < live; ++k) {
                add_gradients<1>(s + k * scores.t_stride, scores.t_stride, of + k, sets, width,
                                 g.data());
              }
            }
            t += std::max<index_t>(live, 1);
          }
        }
        for (index_t e = 0; e < sets; ++e) {
          std::copy_n(g.data() + e * width, width, out + (e * samples + n) * coords + d0);
        }
      }
    };
  });
}

template <class T>
void projections(const Terms<T>& terms, const double* vectors, double* out, int threads) {
  const auto& scores = terms.scores;
  const auto& steps = terms.steps;
  const index_t coords = scores.d;
  threads = threads_for(terms.pass(), threads);
  for_each_task(scores.n, threads, [&] {
    return [&](index_t n) {
      double* to = out + n * scores.t;
      std::fill_n(to, scores.t, 0.0);
      for (index_t t = 0; t < steps.end(n, scores.t); ++t) {
        if (!steps.unmasked(n, t)) continue;
        const T* s = scores.row(n, t);
        prefetch_steps(s, scores.t_stride, coords);
        to[t] = dot(s, vectors + n * coords, coords);
      }
    };
  });
}

template <class T>
void unit_squares(const Terms<T>& terms, View2<const double> mean, const Indices& members,
                  const Indices& offsets, const UnitSquares& out, int threads) {
  const index_t units = static_cast<index_t>(offsets.size()) - 1;
  const index_t* offset = offsets.data();
  threads = threads_for(terms.pass(), threads);
  // Tasks of whole units, with a few rollouts each.
  Indices cuts{0};
  for (index_t u = 1; u <= units; ++u) {
    if (u == units || offset[u] - offset[cuts.back()] >= kTogether) cuts.push_back(u);
  }
  for_each_task(static_cast<index_t>(cuts.size()) - 1, threads, [&] {
    return [&](index_t task) {
      const index_t u0 = cuts[static_cast<std::size_t>(task)];
      const index_t u1 = cuts[static_cast<std::size_t>(task) + 1];
      if (out.step_sum) {
        squares_of_units<true>(terms, mean, members.data(), offset, u0, u1, out);
      } else {
        squares_of_units<false>(terms, mean, members.data(), offset, u0, u1, out);
      }
    };
  });
}

#define RLVAR_INSTANTIATE(T)                                                                       \
  template void gradients(const Terms<T>&, View3<const double>, double*, int);                     \
  template void projections(const Terms<T>&, const double*, double*, int);                         \
  template void unit_squares(const Terms<T>&, View2<const double>, const Indices&, const Indices&, \
                             const UnitSquares&, int);
RLVAR_INSTANTIATE(float)
RLVAR_INSTANTIATE(double)
#undef RLVAR_INSTANTIATE

}  // namespace rlvar
