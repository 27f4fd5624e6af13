// Backward scans over rewards.
#pragma once

#include "views.hpp"

namespace rlvar {

/// Return-to-go of each row: G[n,t] = r[n,t] + gamma * G[n,t'], where t' is the next live step
/// after t (0 if there is none). Steps that are not live give exactly 0 and are skipped: no gamma.
///
/// rewards (N, T), out (N, T); out may be rewards itself.
template <class T>
void reward_to_go(View2<const T> rewards, T gamma, const Steps& steps, View2<T> out, int threads);

}  // namespace rlvar
