// Means of the terms, each over the rollouts that reach its row.
#pragma once

#include "terms.hpp"

namespace rlvar {

/// Means of coordinates [d0, d0 + mean.cols) of the terms, over the rollouts with ends[n] > row:
///   weight[q]  = sum_n p[n],    mean[q,d] + tail[q,d] = sum_n p[n] X[n,q,d0+d] / weight[q].
/// The tail is what rounding took from the mean; it counts where the spread is far below the mean.
struct LiveMeans {
  View2<double> mean, tail;  // (rows, width); the tail may be left out
  double* weight;            // (rows,)
};

/// `order` lists the rollouts by falling end. One pass over the scores. Returns an upper bound of
/// |X|, 0 if that is not finite.
template <class T>
double live_means(const Terms<T>& terms, const Indices& ends, const Indices& order, index_t d0,
                  const LiveMeans& out, int threads);

/// mean[q,d] = sum_n p[n] X[n,q,d] / sum_n p[n], over all rollouts, (rows, D).
template <class T>
void means(const Terms<T>& terms, View2<double> mean, int threads);

}  // namespace rlvar
