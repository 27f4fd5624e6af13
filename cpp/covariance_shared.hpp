// Second moments of the terms of several estimators, which share the scores.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// For E sets of weights (E, N, T), sums (E, T, T), C-contiguous, are overwritten with
///   sums[e,i,j] = sum_d sum_n p[n] X[e,n,i,d] X[e,n,j,d],    X[e,n,t] = weights[e,n,t]
///   scores[n,t].
/// The lower halves count, the upper are scratch. No mean is taken away: digits are lost where it
/// is far above the spread. The weights inside `terms` are not used.
template <class T>
void shared_moments(const Terms<T>& terms, View3<const double> weights, double* sums, int threads);

}  // namespace rlvar
