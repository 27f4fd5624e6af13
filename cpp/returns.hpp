// Backward scans over the steps of each rollout: returns-to-go, GAE.
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
  View2<const double> gammas;  // discount of each step; if absent, gamma
  View2<const std::uint8_t> terminated, truncated;
  Steps steps;
  std::vector<double> bootstrap;  // (N,): V of the state after the last live step; empty for 0
  double gamma = 1.0, lambda = 1.0;

  double bootstrap_of(index_t n) const {
    return bootstrap.empty() ? 0.0 : bootstrap[static_cast<std::size_t>(n)];
  }
};

enum class Kind {
  kReturns,  // G = r + gamma G'; nothing second
  kGae,      // A = delta + gamma lambda A', delta = r + gamma V' - V; second: A + V
};

/// Returns false if a live input was not finite (or a sum overflowed).
template <Kind kind, class T>
bool scan(const Trajectories<T>& in, View2<T> first, View2<T> second, int threads);

}  // namespace rlvar
