// Moments of a policy gradient that need no T x T matrix: O(N T D) each.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// g[e,n,:] = sum_t of live weights[e,n,t] * scores[n,t,:], for E sets of weights in one pass.
///
/// weights (E, N, T), out (E, N, D) C-contiguous, float64. Of `terms`, only scores and steps are
/// used.
template <class T>
void gradients(const Terms<T>& terms, View3<const double> weights, double* out, int threads);

/// out[n,t] = scores[n,t,:] . vectors[n,:] where live, 0 elsewhere.
///
/// vectors (N, D), out (N, T) C-contiguous, float64.
template <class T>
void projections(const Terms<T>& terms, const double* vectors, double* out, int threads);

/// What the variance of the terms and of their running sums is made of, by unit of rollouts, in one
/// pass, given the mean of the terms (T, D). With y[n,t] = X[n,t] - mean[t] and h[n,t] its running
/// sum over t,
///   step[u,t] = sum over n in u of p[n] |y[n,t]|^2,     growth[u,t] = the same of h,
///   step_sum[u,t] = |sum over n in u of y[n,t]|^2,      growth_sum[u,t] = the same of h.
///
/// Unit u holds the rollouts members[offsets[u]] .. members[offsets[u+1] - 1]. All results are
/// (U, T), C-contiguous; the last two may be null.
struct UnitSquares {
  double *step, *growth, *step_sum, *growth_sum;
};
template <class T>
void unit_squares(const Terms<T>& terms, View2<const double> mean, const Indices& members,
                  const Indices& offsets, const UnitSquares& out, int threads);

}  // namespace rlvar
