#include "returns.hpp"

#include "parallel.hpp"

namespace rlvar {

namespace {

// One row's scan waits for its own multiply-add at every step, about 8 cycles. Rows are
// independent: this many in flight hide that wait.
constexpr index_t kRows = 8;

// Below this many rewards for each thread, starting threads costs more than the scan.
constexpr index_t kRewardsPerThread = 1 << 17;

// Scans `Rows` rows from n. Plain: every step is live.
template <index_t Rows, bool Plain, class T>
void scan(View2<const T> rewards, T gamma, const Steps& steps, View2<T> out, index_t n) {
  T future[Rows] = {};
  index_t end[Rows];
  for (index_t r = 0; r < Rows; ++r) end[r] = steps.end(n + r, rewards.cols);
  for (index_t t = rewards.cols - 1; t >= 0; --t) {
    for (index_t r = 0; r < Rows; ++r) {
      if (Plain || (t < end[r] && steps.unmasked(n + r, t))) {
        future[r] = rewards(n + r, t) + gamma * future[r];
        out(n + r, t) = future[r];
      } else {
        out(n + r, t) = T(0);
      }
    }
  }
}

template <bool Plain, class T>
void scan_rows(View2<const T> rewards, T gamma, const Steps& steps, View2<T> out, index_t begin,
               index_t end) {
  index_t n = begin;
  for (; n + kRows <= end; n += kRows) scan<kRows, Plain>(rewards, gamma, steps, out, n);
  for (; n < end; ++n) scan<1, Plain>(rewards, gamma, steps, out, n);
}

}  // namespace

template <class T>
void reward_to_go(View2<const T> rewards, T gamma, const Steps& steps, View2<T> out, int threads) {
  const index_t tasks = ceil_div(rewards.rows, kRows);
  const index_t paying = rewards.rows * rewards.cols / kRewardsPerThread;
  threads = static_cast<int>(std::min<index_t>(threads, std::max<index_t>(paying, 1)));
  const bool plain = !steps.lengths && !steps.mask.data;
  for_each_task(tasks, threads, [&] {
    return [&](index_t task) {
      const index_t begin = task * kRows, end = std::min(begin + kRows, rewards.rows);
      if (plain) {
        scan_rows<true>(rewards, gamma, steps, out, begin, end);
      } else {
        scan_rows<false>(rewards, gamma, steps, out, begin, end);
      }
    };
  });
}

template void reward_to_go(View2<const float>, float, const Steps&, View2<float>, int);
template void reward_to_go(View2<const double>, double, const Steps&, View2<double>, int);

}  // namespace rlvar
