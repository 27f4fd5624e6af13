// Each kernel reads every score once and does a few float64 operations on it: memory-bound work.
// Coordinates are taken 64 at a time, so that running sums stay in the L1 cache.
#include "moments.hpp"

#include "parallel.hpp"

namespace rlvar {

namespace {

constexpr index_t kCoords = 64;  // coordinates in one task
constexpr index_t kBatch = 8;    // rollouts between two updates of the running means
constexpr index_t kMaxBlocks = 16;
constexpr index_t kBlockRollouts = 4 * kBatch;      // fewer are not worth a block
constexpr index_t kBlockBytes = index_t(24) << 20;  // means of all sample blocks

/// Sum of x over [0, width), in 8 interleaved partial sums: one would wait for each addition.
double sum_of(const double* x, index_t width) {
  double part[8] = {};
  index_t d = 0;
  for (; d + 8 <= width; d += 8) {
    for (index_t k = 0; k < 8; ++k) part[k] += x[d + k];
  }
  for (; d < width; ++d) part[0] += x[d];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

/// x = coordinates [d0, d0 + width) of the term X[n,t,:].
template <class T>
void load_term(const Terms<T>& terms, index_t n, index_t t, index_t d0, index_t width, double* x) {
  if (!terms.live(n, t)) {
    std::fill(x, x + width, 0.0);
    return;
  }
  const T* s = terms.scores.row(n, t) + d0;
  const double w = terms.weights(n, t);
  for (index_t d = 0; d < width; ++d) x[d] = w * static_cast<double>(s[d]);
}

/// Running mean and sum of squared deviations of one quantity, by coordinate, for many rollouts.
///
/// Deviations are taken from the running mean as it was before the batch (for the first batch,
/// from the first value): delta = x - m. With q = sum p delta^2, s = sum p delta over the batch and
/// W the total weight with the batch, pairwise merging (Chan, Golub & LeVeque 1979) reduces to
///   squares += q - s^2 / W,   m += s / W.
struct Batch {
  double first[kCoords], second[kCoords];  // s and q

  void clear(index_t width) {
    std::fill(first, first + width, 0.0);
    std::fill(second, second + width, 0.0);
  }
  /// Returns what the batch adds to the squares, summed over coordinates; moves the mean m.
  double merge(double total, double* m, index_t width) {
    if (total == 0.0) return 0.0;
    for (index_t d = 0; d < width; ++d) {
      const double shift = first[d] / total;
      second[d] -= first[d] * shift;
      m[d] += shift;
    }
    return sum_of(second, width);
  }
};

/// Moments of a block of rollouts over a range of coordinates.
struct BlockMoments {
  double weight = 0.0;
  View2<double> mean, running_mean;       // (T, width): of the terms, of their running sums
  double *step_squares, *growth_squares;  // (T,)
};

template <class T>
void block_moments(const Terms<T>& terms, index_t n0, index_t n1, index_t d0, index_t width,
                   BlockMoments& out) {
  const index_t steps = terms.scores.t;
  Batch step, growth;
  std::vector<double> running = zeros(kBatch * kCoords);
  for (index_t n = n0; n < n1; n += kBatch) {
    const index_t count = std::min(kBatch, n1 - n);
    const bool first_batch = n == n0;
    std::fill(running.begin(), running.end(), 0.0);
    for (index_t k = 0; k < count; ++k) out.weight += terms.probability(n + k);
    for (index_t t = 0; t < steps; ++t) {
      double* m = &out.mean(t, 0);
      double* h = &out.running_mean(t, 0);
      step.clear(width);
      growth.clear(width);
      for (index_t k = 0; k < count; ++k) {
        const double p = terms.probability(n + k);
        double* sum = running.data() + k * kCoords;
        double x[kCoords];
        load_term(terms, n + k, t, d0, width, x);
        for (index_t d = 0; d < width; ++d) sum[d] += x[d];
        if (first_batch && k == 0) {
          std::copy(x, x + width, m);
          std::copy(sum, sum + width, h);
        }
        for (index_t d = 0; d < width; ++d) {
          const double delta = x[d] - m[d];
          step.first[d] += p * delta;
          step.second[d] += p * delta * delta;
        }
        for (index_t d = 0; d < width; ++d) {
          const double delta = sum[d] - h[d];
          growth.first[d] += p * delta;
          growth.second[d] += p * delta * delta;
        }
      }
      out.step_squares[t] += step.merge(out.weight, m, width);
      out.growth_squares[t] += growth.merge(out.weight, h, width);
    }
  }
}

/// Merges block b into block a (Chan, Golub & LeVeque 1979).
void merge(const BlockMoments& b, BlockMoments& a) {
  const double total = a.weight + b.weight;
  if (total == 0.0) return;
  const double share = b.weight / total;
  const auto merge_means = [&](View2<double> from, View2<double> to, double* squares) {
    for (index_t t = 0; t < to.rows; ++t) {
      double shift = 0.0;
      for (index_t d = 0; d < to.cols; ++d) {
        const double delta = from(t, d) - to(t, d);
        shift += delta * delta;
        to(t, d) += delta * share;
      }
      squares[t] += shift * a.weight * share;
    }
  };
  merge_means(b.mean, a.mean, a.step_squares);
  merge_means(b.running_mean, a.running_mean, a.growth_squares);
  for (index_t t = 0; t < a.mean.rows; ++t) {
    a.step_squares[t] += b.step_squares[t];
    a.growth_squares[t] += b.growth_squares[t];
  }
  a.weight = total;
}

}  // namespace

template <class T>
void gradients(View3<const T> scores, View3<const double> weights, const Steps& steps, double* out,
               int threads) {
  const index_t sets = weights.n, samples = scores.n, coords = scores.d;
  for_each_task(samples, threads, [&] {
    return [&](index_t n) {
      for (index_t e = 0; e < sets; ++e) {
        double* g = out + (e * samples + n) * coords;
        std::fill(g, g + coords, 0.0);
      }
      for (index_t t = 0; t < std::min(steps.end(n, scores.t), scores.t); ++t) {
        if (!steps.unmasked(n, t)) continue;
        const T* s = scores.row(n, t);
        for (index_t e = 0; e < sets; ++e) {
          const double w = *(weights.row(e, n) + t);
          double* g = out + (e * samples + n) * coords;
          for (index_t d = 0; d < coords; ++d) g[d] += w * static_cast<double>(s[d]);
        }
      }
    };
  });
}

template <class T>
void moments(const Terms<T>& terms, View2<double> mean, double* step_squares,
             double* growth_squares, int threads) {
  const index_t samples = terms.scores.n, steps = terms.scores.t, coords = terms.scores.d;
  const index_t chunks = ceil_div(coords, kCoords);
  // Sample blocks, from the shape alone.
  const index_t blocks = std::max<index_t>(
      1, std::min({samples / kBlockRollouts, kMaxBlocks, kBlockBytes / (16 * steps * kCoords)}));

  std::vector<double> chunk_step = zeros(chunks * steps), chunk_growth = zeros(chunks * steps);
  // A chunk of coordinates at a time; its blocks run in parallel and are merged in order. Where
  // there is one block, the chunks run in parallel instead.
  const auto work = [&](index_t chunk, int inner_threads) {
    const index_t d0 = chunk * kCoords, width = std::min(kCoords, coords - d0);
    std::vector<double> means = zeros(2 * blocks * steps * width);
    std::vector<double> squares = zeros(2 * blocks * steps);
    std::vector<BlockMoments> parts(static_cast<std::size_t>(blocks));
    for (index_t b = 0; b < blocks; ++b) {
      BlockMoments& part = parts[static_cast<std::size_t>(b)];
      part.mean = contiguous(means.data() + 2 * b * steps * width, steps, width);
      part.running_mean = contiguous(means.data() + (2 * b + 1) * steps * width, steps, width);
      part.step_squares = squares.data() + 2 * b * steps;
      part.growth_squares = squares.data() + (2 * b + 1) * steps;
    }
    for_each_task(blocks, inner_threads, [&] {
      return [&](index_t b) {
        block_moments(terms, samples * b / blocks, samples * (b + 1) / blocks, d0, width,
                      parts[static_cast<std::size_t>(b)]);
      };
    });
    BlockMoments& whole = parts.front();
    for (index_t b = 1; b < blocks; ++b) merge(parts[static_cast<std::size_t>(b)], whole);
    for (index_t t = 0; t < steps; ++t) {
      std::copy(&whole.mean(t, 0), &whole.mean(t, 0) + width, &mean(t, d0));
    }
    std::copy(whole.step_squares, whole.step_squares + steps, chunk_step.data() + chunk * steps);
    std::copy(whole.growth_squares, whole.growth_squares + steps,
              chunk_growth.data() + chunk * steps);
  };
  if (blocks > 1) {
    for (index_t chunk = 0; chunk < chunks; ++chunk) work(chunk, threads);
  } else {
    for_each_task(chunks, threads, [&] { return [&](index_t chunk) { work(chunk, 1); }; });
  }
  for (index_t t = 0; t < steps; ++t) {
    step_squares[t] = growth_squares[t] = 0.0;
    for (index_t chunk = 0; chunk < chunks; ++chunk) {
      step_squares[t] += chunk_step.data()[chunk * steps + t];
      growth_squares[t] += chunk_growth.data()[chunk * steps + t];
    }
  }
}

template <class T>
void deletion_losses(const Terms<T>& terms, View2<const double> mean, const std::int64_t* members,
                     const std::int64_t* offsets, index_t units, View2<double> step_loss,
                     View2<double> growth_loss, int threads) {
  const index_t steps = terms.scores.t, coords = terms.scores.d;
  for_each_task(units, threads, [&] {
    return [&, running = std::vector<double>()](index_t u) mutable {
      const std::int64_t* unit = members + offsets[u];
      const index_t size = static_cast<index_t>(offsets[u + 1] - offsets[u]);
      const double inverse = 1.0 / static_cast<double>(terms.scores.n - size);
      for (index_t t = 0; t < steps; ++t) step_loss(u, t) = growth_loss(u, t) = 0.0;
      for (index_t d0 = 0; d0 < coords; d0 += kCoords) {
        const index_t width = std::min(kCoords, coords - d0);
        running = zeros(size * width);
        for (index_t t = 0; t < steps; ++t) {
          const double* m = &mean(t, d0);
          // By coordinate: sums and sums of squares over the unit, of y and of its running sum.
          double y_sum[kCoords] = {}, h_sum[kCoords] = {}, squares[kCoords] = {},
                 h_squares[kCoords] = {};
          for (index_t k = 0; k < size; ++k) {
            double y[kCoords];
            load_term(terms, static_cast<index_t>(unit[k]), t, d0, width, y);
            double* h = running.data() + k * width;
            for (index_t d = 0; d < width; ++d) {
              y[d] -= m[d];
              y_sum[d] += y[d];
              squares[d] += y[d] * y[d];
            }
            for (index_t d = 0; d < width; ++d) {
              h[d] += y[d];
              h_sum[d] += h[d];
              h_squares[d] += h[d] * h[d];
            }
          }
          for (index_t d = 0; d < width; ++d) {
            squares[d] += y_sum[d] * y_sum[d] * inverse;
            h_squares[d] += h_sum[d] * h_sum[d] * inverse;
          }
          step_loss(u, t) += sum_of(squares, width);
          growth_loss(u, t) += sum_of(h_squares, width);
        }
      }
    };
  });
}

#define RLVAR_INSTANTIATE(T)                                                                \
  template void gradients(View3<const T>, View3<const double>, const Steps&, double*, int); \
  template void moments(const Terms<T>&, View2<double>, double*, double*, int);             \
  template void deletion_losses(const Terms<T>&, View2<const double>, const std::int64_t*,  \
                                const std::int64_t*, index_t, View2<double>, View2<double>, int);
RLVAR_INSTANTIATE(float)
RLVAR_INSTANTIATE(double)
#undef RLVAR_INSTANTIATE

}  // namespace rlvar
