// Products of packed panels: sums += factor * A A^T, lower half, A a few hundred columns wide.
//
// A panel holds A's rows in groups of W, the lanes of a vector; within a group, column after
// column: row r, column k lies at [r / W][k][r % W]. The same panel serves as both operands.
//
// The micro-kernel keeps 4 x 3W sums in 12 registers. For each column it loads 3 vectors (one
// operand) and broadcasts 4 numbers (the other): 7 loads for 12 multiply-adds, of which a core does
// 2 each per cycle. Over K = 256 columns that is 24 W K flops in 6 K = 1536 cycles; it reads 3 W K
// numbers (24 KiB) that stay in the L1 cache for a whole tile, and 4 K (4 KiB) from the L2 cache.
// At the end its sums, whatever their type, are added to float64: 4 x 3W numbers, 3 % of the time.
#pragma once

#include <cmath>

#include "lanes.hpp"

namespace rlvar {

constexpr index_t kMiB = 1 << 20;
constexpr index_t kBatchBytes = 2 * kMiB;  // panels packed at a time, if one is not larger
constexpr index_t kPackGroups = 8;         // row groups packed by one task

constexpr index_t kPanel = 256;  // columns of a panel
constexpr index_t kTile = 96;    // rows of a tile, a multiple of 3 W for every W: fits the L2 cache

/// A packed panel of T rows.
template <class T>
struct Panel {
  static constexpr index_t lanes = Lanes<T>::width;

  T* data;
  index_t columns;  // at most kPanel

  static index_t groups(index_t rows) { return ceil_div(rows, lanes); }
  static index_t size(index_t rows) { return groups(rows) * lanes * kPanel; }
  T* group(index_t g) const { return data + g * lanes * kPanel; }
};

/// Memory of panels comes in these.
struct alignas(64) CacheLine {
  unsigned char bytes[64];
};

/// One group of rows, as many as a vector has lanes, kPanel columns each.
template <class P>
using Rows = P[Panel<P>::lanes][kPanel];

/// Packs row group g.
template <class T>
void store_group(const Rows<T>& rows, index_t g, const Panel<T>& panel) {
  using L = Lanes<T>;
  T* out = panel.group(g);
  for (index_t k = 0; k < panel.columns; k += L::width) {
    typename L::Vec v[L::width];
    for (index_t r = 0; r < L::width; ++r) v[r] = L::load(&rows[r][k]);
    L::transpose(v);
    for (index_t r = 0; r < L::width; ++r) L::store(v[r], out + (k + r) * L::width);
  }
}

/// The power of two that takes numbers up to `peak` to the order of 1, where products are float32:
/// their squares stay in range. 1 for float64.
template <class T>
double scale_of(double peak) {
  if (sizeof(T) == 8 || !(peak > 0.0) || !std::isfinite(peak)) return 1.0;
  return std::ldexp(1.0, std::min(-std::ilogb(peak), 1000));
}

/// c[0..W) += factor * v, in float64.
inline void add_scaled(Lanes<double>::Vec v, double factor, double* c) {
  using L = Lanes<double>;
  L::store(L::load(c) + factor * v, c);
}
inline void add_scaled(Lanes<float>::Vec v, double factor, double* c) {
  add_scaled(to_doubles(lower_half(v)), factor, c);
  add_scaled(to_doubles(upper_half(v)), factor, c + Lanes<double>::width);
}

/// c[r, :] += factor * sum_k a[k, r] b[k, :] for Rows rows and Vectors vectors of columns, inside a
/// tile. Not inlined: GCC then keeps every sum in its register.
template <class T, int Rows, int Vectors>
[[gnu::noinline]] void micro_product(const T* a, const T* b, index_t columns, double factor,
                                     double* c) {
  using L = Lanes<T>;
  typename L::Vec sums[Rows][Vectors] = {};
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {  // on their way while the sums are made
#pragma GCC unroll 8
    for (index_t j = 0; j < Vectors * L::width; j += 8) __builtin_prefetch(c + r * kTile + j, 1);
  }
  for (index_t k = 0; k < columns; ++k) {
    typename L::Vec right[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      right[v] = *reinterpret_cast<const typename L::Vec*>(b + (v * kPanel + k) * L::width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const auto left = L::fill(a[k * L::width + r]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) add_scaled(sums[r][v], factor, c + r * kTile + v * L::width);
  }
}

/// Row group `i` by the `count` (1 to 3) column groups from `j` on.
template <class T>
void group_product(const Panel<T>& panel, index_t i, index_t j, index_t count, double factor,
                   double* c) {
  constexpr int lanes = Panel<T>::lanes, rows = std::min(lanes, 4);
  const T* b = panel.group(j);
  const T* a = panel.group(i);
  if (count == 1) return micro_product<T, lanes, 1>(a, b, panel.columns, factor, c);
  for (int r = 0; r < lanes; r += rows) {
    if (count == 2) {
      micro_product<T, rows, 2>(a + r, b, panel.columns, factor, c + r * kTile);
    } else {
      micro_product<T, rows, 3>(a + r, b, panel.columns, factor, c + r * kTile);
    }
  }
}

/// tile (kTile, kTile) += factor * A A^T in rows i from i0 on and columns j from j0 on, both below
/// `rows` or a little beyond, and j <= i or a little beyond.
template <class T>
void tile_product(const Panel<T>& panel, index_t i0, index_t j0, index_t rows, double factor,
                  double* tile) {
  constexpr index_t lanes = Panel<T>::lanes;
  const index_t i_end = Panel<T>::groups(std::min(i0 + kTile, rows));
  const index_t j_end = Panel<T>::groups(std::min(j0 + kTile, rows));
  for (index_t j = j0 / lanes; j < j_end; j += 3) {
    for (index_t i = std::max(i0 / lanes, j); i < i_end; ++i) {
      const index_t count = std::min<index_t>({3, j_end - j, i - j + 1});
      group_product(panel, i, j, count, factor, tile + (i * lanes - i0) * kTile + j * lanes - j0);
    }
  }
}

}  // namespace rlvar
