// Columns of the matrix A that the pairwise kernel multiplies: terms, less their centre, in panels.
//
// Bytes: 4 or 8 for each number from memory, and as many to the panel. Arithmetic is float64, or
// float32 in two parts where the processor fuses multiply and add: then half the instructions. The
// scale, a power of two, keeps the squares of float32 numbers inside their range.
#pragma once

#include "products.hpp"
#include "terms.hpp"

namespace rlvar {

/// What turns terms into columns of A: coordinates [d0, d0 + width) of the rollouts in `order`.
template <class T>
struct Columns {
  const Terms<T>& terms;
  const Indices& order;  // by falling end
  const Indices& ends;
  index_t d0, width;
  View2<const double> centre;  // (T, width)
  double scale;
  std::vector<float> upper, lower;  // scale * centre in two float32 parts, where `in_float` is used

  index_t count() const { return terms.scores.n * width; }
  /// Rows of A that are not all zero from column c on.
  index_t rows_from(index_t c) const { return end(order[static_cast<std::size_t>(c / width)]); }
  index_t end(index_t n) const { return ends[static_cast<std::size_t>(n)]; }
};

/// Whether columns are formed by `centre_in_float`.
template <class T, class P>
constexpr bool in_float = kFused && std::is_same_v<T, float> && std::is_same_v<P, float>;

/// Fills `upper` and `lower`, unless float32 cannot hold them.
template <class T>
void split_centre(Columns<T>& a) {
  const std::size_t size = static_cast<std::size_t>(a.centre.rows * a.width);
  a.upper.resize(size);
  a.lower.resize(size);
  for (std::size_t i = 0; i < size; ++i) {
    const double c = a.centre.data[i] * a.scale;
    if (!(std::abs(c) < 0x1p100)) {
      a.upper.clear();
      return;
    }
    a.upper[i] = static_cast<float>(c);
    a.lower[i] = static_cast<float>(c - static_cast<double>(a.upper[i]));
  }
}

/// x = factor (w s - c) in float32. With w and c in two parts each, and the fused operation
/// rounding once, what is lost is 2^-24 of the result and 2^-48 of the terms.
inline void centre_in_float(const float* __restrict s, double w, const float* __restrict upper,
                            const float* __restrict lower, index_t count, float factor,
                            float* __restrict x) {
  const float high = static_cast<float>(w), low = static_cast<float>(w - static_cast<double>(high));
  for (index_t k = 0; k < count; ++k) {
    x[k] = factor * (__builtin_fmaf(high, s[k], -upper[k]) + __builtin_fmaf(low, s[k], -lower[k]));
  }
}

/// rows[r][c + k] = A's row q0 + r < q1, columns k = 0 .. count - 1 of rollout n from coordinate d
/// on.
template <class T, class P>
void form_rows(const Columns<T>& a, index_t n, index_t q0, index_t q1, index_t d, index_t count,
               index_t c, Rows<P>& rows) {
  const Terms<T>& terms = a.terms;
  const double root = std::sqrt(terms.probability(n)), factor = a.scale * root;
  for (index_t q = q0; q < q1; ++q) {
    const double* m = &a.centre(q, d);
    P* x = &rows[q - q0][c];
    if (terms.block > 1) {
      double row[kPanel];
      load_row(terms, n, q, a.d0 + d, count, row);
      for (index_t k = 0; k < count; ++k) x[k] = static_cast<P>((row[k] - m[k]) * factor);
    } else if (!terms.steps.unmasked(n, q)) {
      for (index_t k = 0; k < count; ++k) x[k] = static_cast<P>(-m[k] * factor);
    } else {
      const T* s = terms.scores.row(n, q) + a.d0 + d;
      const double w = terms.weights(n, q);
      prefetch_steps(s, terms.scores.t_stride, count);
      if constexpr (in_float<T, P>) {
        const double scaled = w * a.scale;  // beyond these bounds, float32 loses digits of it
        if (!a.upper.empty() && std::abs(scaled) < 0x1p100 && !(std::abs(scaled) < 0x1p-60)) {
          const index_t at = q * a.width + d;
          centre_in_float(s, scaled, a.upper.data() + at, a.lower.data() + at, count,
                          static_cast<float>(root), x);
          continue;
        }
      }
      for (index_t k = 0; k < count; ++k) {
        x[k] = static_cast<P>((w * static_cast<double>(s[k]) - m[k]) * factor);
      }
    }
  }
}

/// `pack` where rows are single numbers: those of a rollout lie in memory as they do in the panel.
template <class T, class P>
void pack_scalars(const Columns<T>& a, index_t g, index_t c0, const Panel<P>& panel) {
  constexpr index_t lanes = Panel<P>::lanes;
  const index_t q0 = g * lanes;
  P* out = panel.group(g);
  for (index_t c = 0; c < panel.columns; ++c, out += lanes) {
    const index_t n = a.order[static_cast<std::size_t>(c0 + c)];
    const index_t count = std::clamp<index_t>(a.end(n) - q0, 0, lanes);
    const double factor = a.scale * std::sqrt(a.terms.probability(n)), *m = &a.centre(q0, 0);
    double x[lanes];
    load_scalars(a.terms, n, q0, q0 + count, a.d0, x);
    for (index_t r = 0; r < count; ++r) out[r] = static_cast<P>((x[r] - m[r]) * factor);
    std::fill(out + count, out + lanes, P(0));
  }
}

/// Packs row group g of columns [c0, c0 + panel.columns) of A.
template <class T, class P>
void pack(const Columns<T>& a, index_t g, index_t c0, const Panel<P>& panel) {
  if (a.terms.scalar(a.width)) return pack_scalars(a, g, c0, panel);
  constexpr index_t lanes = Panel<P>::lanes;
  alignas(64) Rows<P> rows;
  const index_t q0 = g * lanes;
  std::size_t i = static_cast<std::size_t>(c0 / a.width);
  index_t d = c0 % a.width;
  for (index_t c = 0; c < panel.columns; ++i, d = 0) {
    const index_t n = a.order[i], count = std::min(a.width - d, panel.columns - c);
    const index_t q1 = std::clamp(a.end(n), q0, q0 + lanes);
    form_rows(a, n, q0, q1, d, count, c, rows);
    for (index_t q = q1; q < q0 + lanes; ++q) std::fill_n(&rows[q - q0][c], count, P(0));
    c += count;
  }
  store_group(rows, g, panel);
}

}  // namespace rlvar
