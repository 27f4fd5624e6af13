// Views: the only array types of the kernels. They own nothing.
//
// Strides count elements, may be 0 (broadcast) or negative, and are taken as they come from numpy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "rlvar's results rest on IEEE arithmetic: compile it without -ffast-math and its parts"
#endif

namespace rlvar {

using index_t = std::ptrdiff_t;

inline index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

/// Scratch memory, zeroed.
inline std::vector<double> zeros(index_t size) {
  return std::vector<double>(static_cast<std::size_t>(size), 0.0);
}

/// A (rows, cols) array.
template <class T>
struct View2 {
  T* data = nullptr;
  index_t rows = 0, cols = 0;
  index_t row_stride = 0, col_stride = 0;

  T& operator()(index_t i, index_t j) const { return data[i * row_stride + j * col_stride]; }
};

/// A C-contiguous (rows, cols) array.
template <class T>
View2<T> contiguous(T* data, index_t rows, index_t cols) {
  return {data, rows, cols, cols, 1};
}

/// An (E, N, T) array whose last axis is contiguous.
template <class T>
struct View3 {
  T* data = nullptr;
  index_t n = 0, t = 0, d = 0;
  index_t n_stride = 0, t_stride = 0;

  T* row(index_t i, index_t j) const { return data + i * n_stride + j * t_stride; }
};

/// Which steps of a rollout belong to the policy. Both parts are optional.
struct Steps {
  std::vector<index_t> lengths;    // (N,), or empty
  View2<const std::uint8_t> mask;  // (N, T); what it holds may change at any time

  bool ragged() const { return !lengths.empty(); }
  /// One past the last step of rollout n that can be live.
  index_t end(index_t n, index_t steps) const {
    return ragged() ? lengths[static_cast<std::size_t>(n)] : steps;
  }
  /// Whether step t < end(n, T) is live.
  bool unmasked(index_t n, index_t t) const { return !mask.data || mask(n, t) != 0; }
};

}  // namespace rlvar
