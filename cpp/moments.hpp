// Moments of a policy gradient that need no T x T matrix: O(N T D) each.
#pragma once

#include "views.hpp"

namespace rlvar {

/// g[e,n,:] = sum_t of live weights[e,n,t] * scores[n,t,:], for E sets of weights in one pass.
///
/// weights (E, N, T), out (E, N, D) C-contiguous, float64.
template <class T>
void gradients(View3<const T> scores, View3<const double> weights, const Steps& steps, double* out,
               int threads);

/// One pass over the scores. With H[n,k] = sum of the first k terms of rollout n:
///   mean[t,d]        = sum_n p[n] X[n,t,d] / sum_n p[n]
///   step_squares[t]  = sum_d sum_n p[n] (X[n,t,d] - mean[t,d])^2
///   growth_squares[k] = sum_d sum_n p[n] (H[n,k,d] - mean of H[.,k,d])^2
///
/// mean (T, D), step_squares (T,), growth_squares (T,), float64.
template <class T>
void moments(const Terms<T>& terms, View2<double> mean, double* step_squares,
             double* growth_squares, int threads);

/// What deleting one unit (rollout or group) takes from the sums of squares, for each unit u, in
/// one pass, given the mean of the terms (T, D):
///   sum over n in u of |y[n]|^2 + |sum over n in u of y[n]|^2 / (N - size of u)
/// with y[n] = X[n,t] - mean[t] in step_loss[u,t] and the running sum of y in growth_loss[u,t].
/// Exact: it is the sum of squares about the mean of all, less that of the rest about their own.
///
/// Unit u holds the rollouts members[offsets[u]] .. members[offsets[u+1] - 1].
template <class T>
void deletion_losses(const Terms<T>& terms, View2<const double> mean, const std::int64_t* members,
                     const std::int64_t* offsets, index_t units, View2<double> step_loss,
                     View2<double> growth_loss, int threads);

}  // namespace rlvar
