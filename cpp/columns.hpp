// Columns of the matrix A that the pairwise kernel multiplies: terms, less their centre, in panels.
//
// Bytes: 4 or 8 for each number from memory, and as many to the panel. Arithmetic is float64. The
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
  const Indices& ends;   // of the rows that are not 0, at least
  index_t d0, width;
  View2<const double> centre;  // (T, width)
  double scale;

  index_t count() const { return terms.scores.n * width; }
  /// Rows of A that are not all zero from column c on.
  index_t rows_from(index_t c) const { return end(order[static_cast<std::size_t>(c / width)]); }
  index_t end(index_t n) const { return ends[static_cast<std::size_t>(n)]; }
};

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
    } else if (!terms.live(n, q)) {
      for (index_t k = 0; k < count; ++k) x[k] = static_cast<P>(-m[k] * factor);
    } else {
      const T* s = terms.scores.row(n, q) + a.d0 + d;
      const double w = terms.weights(n, q);
      prefetch_steps(s, terms.scores.t_stride, count);
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

/// Packs row group g of columns [c0, c0 + panel.columns) of a matrix, times `scale`.
template <class P>
void pack_matrix(View2<const double> x, double scale, index_t g, index_t c0,
                 const Panel<P>& panel) {
  constexpr index_t lanes = Panel<P>::lanes;
  alignas(64) Rows<P> rows;
  for (index_t r = 0; r < lanes; ++r) {
    const index_t q = g * lanes + r;
    for (index_t k = 0; k < panel.columns; ++k) {
      rows[r][k] = q < x.rows ? static_cast<P>(x(q, c0 + k) * scale) : P(0);
    }
  }
  store_group(rows, g, panel);
}

}  // namespace rlvar
