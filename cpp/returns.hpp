// Backward scans over the steps of each rollout: returns-to-go, GAE, V-trace.
//
// Every scan is the recurrence x[t] = a[t] + c[t] x[t'] over the live steps, with t' the live step
// after t. A step that is not live is a = 0, c = 1: it passes x on and its output is 0.
#pragma once

#include "views.hpp"

namespace rlvar {

/// What the scans read. Arrays are (N, T) views of any strides; those with null data are absent.
template <class T>
struct Trajectories {
  View2<const T> rewards;
  View2<const T> values;       // V of each step's state
  View2<const T> next_values;  // V of the state after a truncated step
  View2<const T> gammas;       // discount of each step; if absent, gamma
  View2<const T> rho, cut;     // V-trace: clipped importance ratios of the error and the trace
  View2<const std::uint8_t> terminated, truncated;
  Steps steps;
  const T* bootstrap = nullptr;  // (N,): V of the state after the last live step; 0 if absent
  double gamma = 1.0, lambda = 1.0;
};

/// Whether every number of an array is finite, in one pass.
template <class T>
bool all_finite(View2<const T> array);

/// out: G = r + gamma G'. Returns false if a live input was not finite (or a sum overflowed).
template <class T>
bool reward_to_go(const Trajectories<T>& in, View2<T> out, int threads);

/// advantages: A = delta + gamma lambda A', delta = r + gamma V' - V; returns: A + V.
template <class T>
bool gae(const Trajectories<T>& in, View2<T> advantages, View2<T> returns, int threads);

/// targets: vs = V + x, x = rho delta + gamma cut x'; advantages: rho (delta + gamma x').
template <class T>
bool vtrace(const Trajectories<T>& in, View2<T> targets, View2<T> advantages, int threads);

}  // namespace rlvar
