// Pairwise covariance of the step terms of a policy gradient.
#pragma once

#include "views.hpp"

namespace rlvar {

/// C[i,j] = sum_d sum_n p[n] (X[n,i,d] - m[i,d]) (X[n,j,d] - m[j,d]) / normaliser,
/// with X the terms, p the sample weights and m[t,d] = sum_n p[n] X[n,t,d] / sum_n p[n].
///
/// out (T, T), C-contiguous, is overwritten. A non-finite live term makes its row of C non-finite.
template <class T>
void covariance(const Terms<T>& terms, double normaliser, View2<double> out, int threads);

}  // namespace rlvar
