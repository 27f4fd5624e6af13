// Pairwise covariance of the step terms of a policy gradient.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// sums[i,j] = sum_d sum_n p[n] (X[n,i,d] - m[i,d]) (X[n,j,d] - m[j,d]), with X the terms, p the
/// sample weights and m[t,d] = sum_n p[n] X[n,t,d] / sum_n p[n].
///
/// sums (T, T), C-contiguous, is overwritten: the lower half counts, the upper is scratch; see
/// `symmetric`. A non-finite live term makes its row non-finite. Where `mean` and `tail` (T, D)
/// have data, the first gets m, the second what rounding took from it. T counts rows, if block > 1.
template <class T>
void comoments(const Terms<T>& terms, View2<double> sums, View2<double> mean, View2<double> tail,
               int threads);

/// Lower half of sums (T, T) += factor * x x^T, x (T, D).
void add_product(View2<const double> x, double factor, View2<double> sums, int threads);

/// sums[i,j] = sums[j,i] = sums[i,j] / divisor for j <= i.
void symmetric(View2<double> sums, double divisor, int threads);

}  // namespace rlvar
