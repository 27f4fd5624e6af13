// Pairwise covariance of step terms whose scores are outer products, which are never formed.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// out[i,j] = sum_n p[n] <X[n,i] - m[i], X[n,j] - m[j]> / divisor, summed over all p q coordinates
/// of the terms X[n,t] = w[n,t] a[n,t] (x) b[n,t], zero on steps that are not live, and m[t] =
/// sum_n p[n] X[n,t] / sum_n p[n]; entries of blocks of `block` steps are summed.
///
/// `a` holds a (N, T, p) as scores, the weights w, the live steps and p[n]; b is (N, T, q). out
/// (ceil(T / block), the same), C-contiguous, is overwritten. A live step with a number that is not
/// finite makes its row not finite.
template <class T>
void covariance_factored(const Terms<T>& a, const Scores<T>& b, double divisor, index_t block,
                         View2<double> out, int threads);

}  // namespace rlvar
