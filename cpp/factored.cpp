// With u = w a, the products of the terms of one rollout are products of numbers,
//   <X_i, X_j> = (u_i . u_j) (b_i . b_j),
// and the mean's part is a product over the p q coordinates of the means m_t (p, q):
//   C divisor = sum_n p_n (u_ni . u_nj) (b_ni . b_nj) - P (m_i . m_j),    P = sum_n p_n.
//
// Operations, of both Gram matrices' lower halves, of forming the means, and of their product:
//   (p + q) sum_n L_n (L_n + 1)  +  2 p q sum_n L_n  +  p q T (T + 1),
// where terms of D = p q coordinates would take p q sum_n L_n (L_n + 1): fewer by a factor of about
// N p q / (N (p + q) + p q). The mean's part is also a sum over pairs of rollouts, (N T)^2 (p + q)
// operations and no means: fewer where N^2 (p + q) < p q (1 + 2 N / T), so for some sqrt(min(p, q))
// rollouts or less, where a variance says little; and it needs all rollouts' panels at once.
//
// Bytes: a and b are read once for their norms and once to be packed; for the means, a once for
// every 32 coordinates of b and b once for every 32 of a, 128 bytes of float32 at a time. The means
// (T, p, q) are formed as they are packed, at most 1024 of the p q coordinates at a time: they
// never exist. Memory: the packed factors of a few rollouts, tiles of the result, 24 bytes for each
// step of each rollout; and a T x T matrix, where its entries are to be added up.
//
// Digits: u_i . u_j and b_i . b_j of float32 run in float32 over at most 256 columns and are added
// in float64, and so are the means over at most 256 rollouts. Every row is scaled by powers of two,
// which its weight takes up. Where the mean of a step's terms is far above their spread, they are
// centred first: nearly equal outer products are near one, x (x) c, and their factors are near x
// and c up to a number, g u and b / g. So with x and c the means of the factors, g such that b / g
// has a fixed product with one of them,
//   X - x (x) c = (g u - x) (x) (b / g)  +  x (x) (b / g - c),
// two outer products of the order of the spread, no difference of large numbers in either. Each is
// an "atom" with a row of its own in the matrix; rows of the same step are added up at the end. A
// step that is not live has X = 0, and there -x (x) c is the one atom.
#include "factored.hpp"

#include <cmath>
#include <memory>

#include "parallel.hpp"
#include "tiles.hpp"

namespace rlvar {

namespace {

constexpr double kTolerated = 4.0;  // second moment of a step, over what centring would leave of it
constexpr index_t kSide = 32;       // coordinates of a, and of b, whose means are formed together
constexpr index_t kAhead = 12;      // rollouts

template <class A, class B>
double dot(const A* a, const B* b, index_t count) {
  using L = Lanes<double>;
  typename L::Vec even{}, odd{};
  index_t k = 0;
  for (; k + 2 * L::width <= count; k += 2 * L::width) {
    even += load_doubles(a + k) * load_doubles(b + k);
    odd += load_doubles(a + k + L::width) * load_doubles(b + k + L::width);
  }
  double rest = 0.0;
  for (; k < count; ++k) rest += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum_of(even + odd) + rest;
}

/// Asks for a row that is needed soon, where the hardware cannot see it come; of a long one, for
/// its first numbers.
template <class T>
void prefetch(const T* row, index_t count) {
  for (index_t k = 0; k < std::min(count, 64 * kLine<T>); k += kLine<T>)
    __builtin_prefetch(row + k);
  __builtin_prefetch(row + count - 1);
}

/// The exponent of the norm of a row, given its square; of its largest number, where that is out of
/// range.
template <class T>
int exponent_of(double square, const T* row, index_t count) {
  if (square > 1e-280 && square < 1e280) return std::ilogb(square) / 2;
  double peak = 0.0;
  for (index_t k = 0; k < count; ++k) peak = std::max(peak, std::abs(static_cast<double>(row[k])));
  return peak > 0.0 && std::isfinite(peak) ? std::max(std::ilogb(peak), -1000) : 0;
}

/// An atom's powers of two, and its weight, which makes up for them.
struct Scales {
  double a = 1.0, b = 1.0, weight = 0.0;

  Scales() = default;
  Scales(int a_exponent, int b_exponent, double w)
      : a(std::ldexp(1.0, -a_exponent)),
        b(std::ldexp(1.0, -b_exponent)),
        weight(std::ldexp(w, a_exponent + b_exponent)) {}
};

/// What is taken from the terms of a step: x (x) c.
struct Centre {
  std::vector<double> x, c;    // (p,), (q,)
  std::vector<double> factor;  // (N,) 1 / g
  std::vector<Scales> scales;  // (N,) of the second atom, x (x) (b / g - c)
};

/// One factor of an atom: factor * data - scale * centre, absent parts being 0.
template <class T>
struct Side {
  const T* data = nullptr;
  const double* centre = nullptr;
  double factor = 0.0, scale = 0.0;
};
template <class T>
struct Atom {
  Side<T> a, b;
  double weight = 0.0;
};

/// out[k] = coordinate first + k of one side, times `times`.
template <class T>
void form(const Side<T>& side, double times, index_t first, index_t count, T* out) {
  const T* x = side.data ? side.data + first : nullptr;
  const double* c = side.centre ? side.centre + first : nullptr;
  if (x && c) {
    for (index_t k = 0; k < count; ++k) {
      out[k] =
          static_cast<T>((side.factor * static_cast<double>(x[k]) - side.scale * c[k]) * times);
    }
  } else if (x) {
    const double factor = side.factor * times;
    for (index_t k = 0; k < count; ++k) {
      out[k] = static_cast<T>(factor * static_cast<double>(x[k]));
    }
  } else if (c) {
    const double factor = -side.scale * times;
    for (index_t k = 0; k < count; ++k) out[k] = static_cast<T>(factor * c[k]);
  } else {
    std::fill_n(out, count, T(0));
  }
}

/// The rows of the matrix: the second atoms of centred steps, then the first of every step.
template <class T>
class Atoms {
  const Terms<T>& a_;
  const Scores<T>& b_;
  std::vector<Scales> scales_;                    // (N, T) of the first atoms
  std::vector<std::unique_ptr<Centre>> centres_;  // (T,), null where there is none
  std::vector<index_t> centred_;                  // their steps
  index_t padded_ = 0;                            // one past the last of them

 public:
  Atoms(const Terms<T>& a, const Scores<T>& b, int threads)
      : a_(a),
        b_(b),
        scales_(static_cast<std::size_t>(b.n * b.t)),
        centres_(static_cast<std::size_t>(b.t)) {
    const double total = a.total_probability();
    for_each_task(b.t, threads, [&] { return [&](index_t t) { measure(t, total); }; });
    for (index_t t = 0; t < b.t; ++t) {
      if (!centres_[static_cast<std::size_t>(t)]) continue;
      centred_.push_back(t);
      padded_ = t + 1;
    }
  }
  index_t extra() const { return static_cast<index_t>(centred_.size()); }
  index_t rows() const { return extra() + b_.t; }
  index_t step(index_t row) const {
    return row < extra() ? centred_[static_cast<std::size_t>(row)] : row - extra();
  }
  /// Rows of a rollout that are not all 0, at most, if its steps end there.
  index_t height(index_t end) const { return extra() + std::max(end, padded_); }

  Atom<T> atom(index_t n, index_t row) const {
    const index_t t = step(row);
    const Centre* centre = centres_[static_cast<std::size_t>(t)].get();
    const bool live = a_.live(n, t), second = row < extra();
    if (!live && (second || !centre)) return {};
    const Scales& s = scales(n, row);
    const double w = a_.weights(n, t);
    const T *a = a_.scores.row(n, t), *b = b_.row(n, t);
    if (!centre) return {{a, nullptr, s.a, 0.0}, {b, nullptr, s.b, 0.0}, s.weight};
    const double *x = centre->x.data(), *c = centre->c.data();
    const double g = centre->factor[static_cast<std::size_t>(n)];
    if (!live) return {{nullptr, x, 0.0, s.a}, {nullptr, c, 0.0, s.b}, s.weight};
    if (second) return {{nullptr, x, 0.0, s.a}, {b, c, g * s.b, s.b}, s.weight};
    return {{a, x, w / g * s.a, s.a}, {b, nullptr, g * s.b, 0.0}, s.weight};
  }

  double weight(index_t n, index_t row) const { return scales(n, row).weight; }

 private:
  const Scales& scales(index_t n, index_t row) const {
    if (row >= extra()) return first_scales(n, row - extra());
    return centres_[static_cast<std::size_t>(step(row))]->scales[static_cast<std::size_t>(n)];
  }
  const Scales& first_scales(index_t n, index_t t) const {
    return scales_[static_cast<std::size_t>(n * b_.t + t)];
  }
  Scales& first_scales(index_t n, index_t t) {
    return scales_[static_cast<std::size_t>(n * b_.t + t)];
  }

  /// Finds the scales of a step's atoms, and its centre, if it needs one.
  void measure(index_t t, double total) {
    const index_t samples = b_.n, p = a_.scores.d, q = b_.d;
    index_t origin = -1;  // the first rollout whose term is not 0
    double moment = 0.0, reached = 0.0, origin_square = 0.0;
    std::vector<double> factor(static_cast<std::size_t>(samples), 1.0);
    std::vector<int> a_exponents(factor.size()), b_exponents(factor.size());
    for (index_t n = 0; n < samples; ++n) {
      if (n + kAhead < samples) {
        prefetch(a_.scores.row(n + kAhead, t), p);
        prefetch(b_.row(n + kAhead, t), q);
      }
      if (!a_.live(n, t)) continue;
      const auto i = static_cast<std::size_t>(n);
      const T *a = a_.scores.row(n, t), *b = b_.row(n, t);
      const double w = a_.weights(n, t), aa = dot(a, a, p), bb = dot(b, b, q);
      a_exponents[i] = exponent_of(aa, a, p);
      b_exponents[i] = exponent_of(bb, b, q);
      first_scales(n, t) = {a_exponents[i], b_exponents[i], w};
      reached += a_.probability(n);
      const double square = a_.probability(n) * w * w * aa * bb;
      if (!(square > 0.0)) continue;
      moment += square;
      if (origin < 0) origin = n, origin_square = bb;
      const double with = dot(b, b_.row(origin, t), q);
      if (2.0 * with * with > bb * origin_square) factor[i] = origin_square / with;
    }
    if (origin < 0 || !std::isfinite(moment)) return;
    const auto mean = [&](const Scores<T>& rows, bool weighted, index_t count) {
      std::vector<double> from(static_cast<std::size_t>(count)), sum = from;
      const auto number = [&](index_t n) {
        const double g = factor[static_cast<std::size_t>(n)];
        return weighted ? a_.weights(n, t) / g : g;
      };
      const double f = number(origin);
      const T* first = rows.row(origin, t);
      for (index_t k = 0; k < count; ++k) from[k] = f * static_cast<double>(first[k]);
      for (index_t n = 0; n < samples; ++n) {
        if (!a_.live(n, t)) continue;
        const double one = number(n), share = a_.probability(n) / reached;
        const T* x = rows.row(n, t);
        for (index_t k = 0; k < count; ++k) {
          sum[k] += share * (one * static_cast<double>(x[k]) - from[k]);
        }
      }
      for (index_t k = 0; k < count; ++k) sum[k] += from[k];
      return sum;
    };
    auto centre = std::make_unique<Centre>();
    centre->x = mean(a_.scores, true, p);
    centre->c = mean(b_, false, q);
    const double xx = squared_norm(centre->x.data(), p), cc = squared_norm(centre->c.data(), q);
    if (!(4.0 * total * xx * cc > moment)) return;  // less than half the mean: Cauchy-Schwarz
    double left = moment + total * xx * cc;         // sum_n p |X - x (x) c|^2
    for (index_t n = 0; n < samples; ++n) {
      if (!a_.live(n, t)) continue;
      left -= 2.0 * a_.probability(n) * a_.weights(n, t) *
              dot(a_.scores.row(n, t), centre->x.data(), p) *
              dot(b_.row(n, t), centre->c.data(), q);
    }
    if (!(kTolerated * left < moment)) return;
    const auto exponent = [](double square) {
      return square > 1e-280 && square < 1e280 ? std::ilogb(square) / 2 : 0;
    };
    const int x_exponent = exponent(xx), c_exponent = exponent(cc);
    centre->scales.resize(factor.size());
    for (index_t n = 0; n < samples; ++n) {
      const auto i = static_cast<std::size_t>(n);
      Scales& first = first_scales(n, t);
      if (!a_.live(n, t)) {
        first = {x_exponent, c_exponent, -1.0};
        continue;
      }
      const double g = factor[i], w = a_.weights(n, t) / g;
      const int a_side =
                    w != 0.0 ? std::max(x_exponent, a_exponents[i] + std::ilogb(w)) : x_exponent,
                b_side = b_exponents[i] + std::ilogb(g);
      first = {a_side, b_side, 1.0};
      centre->scales[i] = {x_exponent, std::max(c_exponent, b_side), -1.0};
    }
    centre->factor = std::move(factor);
    centres_[static_cast<std::size_t>(t)] = std::move(centre);
  }
};

/// Columns of a rollout's panels: a's p, then b's q.
struct Part {
  index_t first, count;  // columns of one panel
};
inline Part part_of(index_t panel, index_t first, index_t last) {
  const index_t from = std::max(panel * kPanel, first), to = std::min((panel + 1) * kPanel, last);
  return {from - panel * kPanel, std::max<index_t>(to - from, 0)};
}

/// sums += products of the atoms of each rollout.
template <class T>
void add_rollouts(const Terms<T>& a, const Scores<T>& b, const Atoms<T>& atoms, TileSums& sums,
                  int threads) {
  constexpr index_t lanes = Panel<T>::lanes;
  const index_t rows = atoms.rows(), p = a.scores.d, all = p + b.d;
  const index_t panels = ceil_div(all, kPanel), size = Panel<T>::size(rows);
  const Indices ends = a.ends(), order = by_falling(ends);
  const auto rollout = [&](index_t i) { return order[static_cast<std::size_t>(i)]; };
  const auto height = [&](index_t i) {
    return atoms.height(ends[static_cast<std::size_t>(rollout(i))]);
  };
  multiply_in_batches<T>(
      rows, b.n, panels, sums.accumulators(), threads, height, [](index_t, index_t) {},
      [&](index_t i, index_t g, T* data) {
        alignas(64) Rows<T> packed;
        Atom<T> atom[lanes];
        for (index_t r = 0; r < lanes && g * lanes + r < height(i); ++r) {
          atom[r] = atoms.atom(rollout(i), g * lanes + r);
        }
        for (index_t k = 0; k < panels; ++k) {
          const Part left = part_of(k, 0, p), right = part_of(k, p, all);
          for (index_t r = 0; r < lanes; ++r) {
            form(atom[r].a, 1.0, k * kPanel, left.count, packed[r]);
            form(atom[r].b, 1.0, k * kPanel + right.first - p, right.count,
                 packed[r] + right.first);
          }
          store_group(packed, g, Panel<T>{data + k * size, left.count + right.count});
        }
      },
      [&] {
        return [&, left = zeros(TileSums::size), right = zeros(TileSums::size)](
                   index_t i, T* data, index_t pair, index_t accumulator) mutable {
          const auto [i0, j0] = Tiles::corner(pair);
          const index_t n = rollout(i), end = height(i);
          const index_t tall = std::min(kTile, end - i0), wide = std::min(kTile, end - j0);
          const index_t used = std::min(kTile, Panel<T>::groups(tall) * lanes) * kTile;
          std::fill_n(left.begin(), used, 0.0);
          std::fill_n(right.begin(), used, 0.0);
          for (index_t k = 0; k < panels; ++k) {
            const auto add = [&](Part part, double* tile) {
              T* from = data + k * size + part.first * lanes;
              if (part.count) tile_product(Panel<T>{from, part.count}, i0, j0, end, 1.0, tile);
            };
            add(part_of(k, 0, p), left.data());
            add(part_of(k, p, all), right.data());
          }
          double* to = sums.tile(accumulator, pair);
          double weights[kTile];
          for (index_t c = 0; c < wide; ++c) weights[c] = atoms.weight(n, j0 + c);
          for (index_t r = 0; r < tall; ++r) {
            const double factor = a.probability(n) * atoms.weight(n, i0 + r);
            const double *x = left.data() + r * kTile, *y = right.data() + r * kTile;
            double* z = to + r * kTile;
            const index_t count = std::min(wide, i0 + r - j0 + 1);
            for (index_t c = 0; c < count; ++c) z[c] += factor * x[c] * y[c] * weights[c];
          }
        };
      });
}

/// `form` in groups of W coordinates, kPanel W numbers apart, the last one filled with zeros.
template <class T>
void form_lanes(const Side<T>& side, double times, index_t first, index_t count, T* out) {
  constexpr index_t lanes = Panel<T>::lanes;
  for (index_t k = 0; k < count; k += lanes, out += lanes * kPanel) {
    const index_t some = std::min(lanes, count - k);
    form(side, times, first + k, some, out);
    std::fill(out + some, out + lanes, T(0));
  }
}

/// sums (down W, over W), rows kTile apart, += sum_k a[k] (x) b[k], both packed in groups of W
/// rows.
template <class T>
void add_outer(const T* a, const T* b, index_t down, index_t over, index_t count, double* sums) {
  constexpr int lanes = Panel<T>::lanes, rows = std::min(lanes, 4);
  for (index_t r = 0; r < down * lanes; r += rows) {
    const T* left = a + r / lanes * lanes * kPanel + r % lanes;
    for (index_t c = 0; c < over; c += 2) {
      const T* right = b + c * lanes * kPanel;
      double* to = sums + r * kTile + c * lanes;
      if (c + 1 < over) {
        micro_product<T, rows, 2>(left, right, count, 1.0, to);
      } else {
        micro_product<T, rows, 1>(left, right, count, 1.0, to);
      }
    }
  }
}

/// sums -= P M M^T, M (T, p q) the means of the first atoms; those of the second are 0.
template <class T>
void subtract_means(const Terms<T>& a, const Scores<T>& b, const Atoms<T>& atoms, TileSums& sums,
                    int threads) {
  constexpr index_t lanes = Panel<T>::lanes;
  const index_t rows = atoms.rows(), samples = b.n;
  const double total = a.total_probability();
  // Coordinates of a and of b that are formed together: tall times wide, in a few panels.
  const auto even = [](index_t all, index_t most) { return ceil_div(all, ceil_div(all, most)); };
  const index_t p = a.scores.d, q = b.d;
  const index_t tall = even(p, std::clamp(kSide * kSide / q, kSide, kTile)),
                wide = even(q, std::clamp(kSide * kSide / p, kSide, kTile));
  const index_t across = ceil_div(q, wide), items = ceil_div(p, tall) * across;
  const index_t each = ceil_div(tall * wide, kPanel), size = Panel<T>::size(rows);
  // Powers of two near the largest that the means can be, 0 where they are.
  std::vector<double> unit = zeros(rows);
  for (index_t n = 0; n < samples; ++n) {
    for (index_t row = atoms.extra(); row < rows; ++row) {
      unit[static_cast<std::size_t>(row)] +=
          a.probability(n) / total * std::abs(atoms.weight(n, row));
    }
  }
  for (double& u : unit) {
    if (u > 0.0) u = std::ldexp(1.0, std::max(std::ilogb(u), -1000));
  }
  const auto panel = [&](index_t i, index_t k, T* data) {
    const index_t left =
        std::min(tall, p - i / across * tall) * std::min(wide, q - i % across * wide) - k * kPanel;
    return Panel<T>{data + k * size, std::clamp<index_t>(left, 0, kPanel)};
  };
  multiply_in_batches<T>(
      rows, items, each, sums.accumulators(), threads, [&](index_t) { return rows; },
      [](index_t, index_t) {},
      [&](index_t i, index_t g, T* data) {
        const index_t r0 = i / across * tall, c0 = i % across * wide;
        const index_t height = std::min(tall, p - r0), width = std::min(wide, q - c0);
        const index_t down = ceil_div(height, lanes), over = ceil_div(width, lanes);
        const index_t bytes = (down + over) * lanes * kPanel * static_cast<index_t>(sizeof(T));
        const std::unique_ptr<CacheLine[]> memory(
            new CacheLine[static_cast<std::size_t>(bytes / 64)]);
        T* left = reinterpret_cast<T*>(memory.get());
        T* right = left + down * lanes * kPanel;
        alignas(64) Rows<T> packed[kSide * kSide / kPanel];
        double mean[kTile * kTile];
        for (index_t r = 0; r < lanes; ++r) {
          const index_t row = g * lanes + r;
          const double scale = row < rows ? unit[static_cast<std::size_t>(row)] : 0.0;
          std::fill_n(mean, down * lanes * kTile, 0.0);
          for (index_t n = 0; n < samples && scale != 0.0;) {
            index_t count = 0;
            for (; n < samples && count < kPanel; ++n) {
              if (n + kAhead < samples) {
                prefetch(a.scores.row(n + kAhead, atoms.step(row)) + r0, height);
                prefetch(b.row(n + kAhead, atoms.step(row)) + c0, width);
              }
              const Atom<T> atom = atoms.atom(n, row);
              if (!atom.a.data && !atom.a.centre) continue;
              const double share = a.probability(n) / total * (atom.weight / scale);
              form_lanes(atom.a, share, r0, height, left + count * lanes);
              form_lanes(atom.b, 1.0, c0, width, right + count * lanes);
              ++count;
            }
            add_outer(left, right, down, over, count, mean);
          }
          T line[kSide * kSide];
          for (index_t k = 0; k < height; ++k) {
            for (index_t c = 0; c < width; ++c) {
              line[k * width + c] = static_cast<T>(mean[k * kTile + c]);
            }
          }
          for (index_t k = 0; k < each; ++k) {
            std::copy_n(line + k * kPanel, panel(i, k, data).columns, packed[k][r]);
          }
        }
        for (index_t k = 0; k < each; ++k) store_group(packed[k], g, panel(i, k, data));
      },
      [&] {
        return [&, tile = zeros(TileSums::size)](index_t i, T* data, index_t pair,
                                                 index_t accumulator) mutable {
          const auto [i0, j0] = Tiles::corner(pair);
          if (j0 + kTile <= atoms.extra()) return;  // zeros
          std::fill(tile.begin(), tile.end(), 0.0);
          for (index_t k = 0; k < each; ++k) {
            tile_product(panel(i, k, data), i0, j0, rows, 1.0, tile.data());
          }
          double* to = sums.tile(accumulator, pair);
          for (index_t r = 0; r < std::min(kTile, rows - i0); ++r) {
            const double factor = -total * unit[static_cast<std::size_t>(i0 + r)];
            const index_t count = std::min({kTile, rows - j0, i0 + r - j0 + 1});
            const double *x = tile.data() + r * kTile, *units = unit.data() + j0;
            for (index_t c = 0; c < count; ++c) to[r * kTile + c] += factor * x[c] * units[c];
          }
        };
      });
}

}  // namespace

template <class T>
void covariance_factored(const Terms<T>& a, const Scores<T>& b, double divisor, index_t block,
                         View2<double> out, int threads) {
  const Atoms<T> atoms(a, b, threads);
  const index_t rows = atoms.rows();
  TileSums sums(rows, b.n / 2);
  add_rollouts(a, b, atoms, sums, threads);
  subtract_means(a, b, atoms, sums, threads);
  if (rows == out.rows) return sums.store(out, divisor, threads);
  std::vector<double> all = zeros(rows * rows);
  sums.store(contiguous(all.data(), rows, rows), divisor, threads);
  for (index_t i = 0; i < out.rows; ++i) std::fill_n(&out(i, 0), out.cols, 0.0);
  for (index_t i = 0; i < rows; ++i) {
    double* to = &out(atoms.step(i) / block, 0);
    for (index_t j = 0; j < rows; ++j) {
      to[atoms.step(j) / block] += all[static_cast<std::size_t>(i * rows + j)];
    }
  }
}

template void covariance_factored(const Terms<float>&, const Scores<float>&, double, index_t,
                                  View2<double>, int);
template void covariance_factored(const Terms<double>&, const Scores<double>&, double, index_t,
                                  View2<double>, int);

}  // namespace rlvar
