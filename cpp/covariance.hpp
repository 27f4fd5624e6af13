// Pairwise covariance of the step terms of a policy gradient, of one estimator or several.
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

/// For E sets of weights (E, N, T), sums (E, T, T), C-contiguous, are overwritten with
///   sums[e,i,j] = sum_d sum_n p[n] X[e,n,i,d] X[e,n,j,d],    X[e,n,t] = weights[e,n,t]
///   scores[n,t].
/// The lower halves count, the upper are scratch. No mean is taken away: digits are lost where it
/// is far above the spread. The weights inside `terms` are not used.
template <class T>
void shared_moments(const Terms<T>& terms, View3<const double> weights, double* sums, int threads);

}  // namespace rlvar
