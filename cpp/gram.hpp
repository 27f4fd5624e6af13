// Dense products of what is small in one direction: Gram matrices, and resamples applied to them.
#pragma once

#include "views.hpp"

namespace rlvar {

/// out (M, N) += a b with a (M, K) and b (K, N). Rows of a and out are contiguous, and so are the
/// rows or the columns of b.
void add_matmul(View2<const double> a, View2<const double> b, View2<double> out, int threads);

/// sums (T, T) += factor * x x^T, x (T, D). The lower half of sums is read, both are written.
void add_product(View2<const double> x, double factor, View2<double> sums, int threads);

}  // namespace rlvar
