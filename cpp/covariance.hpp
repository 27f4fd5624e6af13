// Pairwise covariance of the step terms of a policy gradient.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// out[i,j] = sum_d sum_n p[n] (X[n,i,d] - m[i,d]) (X[n,j,d] - m[j,d]) / divisor, with X the terms,
/// p the sample weights and m[t,d] = sum_n p[n] X[n,t,d] / sum_n p[n].
///
/// out (T, T), C-contiguous, is overwritten. A non-finite live term makes its row non-finite. Where
/// `mean` and `tail` (T, D) have data, the first gets m, the second what rounding took from it. T
/// counts rows, if block > 1.
template <class T>
void covariance(const Terms<T>& terms, double divisor, View2<double> out, View2<double> mean,
                View2<double> tail, int threads);

/// sums (T, T) += factor * x x^T, x (T, D). The lower half of sums is read, both are written.
void add_product(View2<const double> x, double factor, View2<double> sums, int threads);

}  // namespace rlvar
