// Independent tasks, handed out to threads.
//
// What a task computes depends on the data alone, never on the thread that runs it or on how many
// there are; kernels merge the results of tasks in the order of the tasks. Results are therefore
// bit-identical for any number of threads.
//
// Interrupts: between its tasks the main thread looks, a few times a second, whether the user wants
// to stop. Kernels that are not to be left half done write to memory of their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>

#include "views.hpp"

namespace rlvar {

/// Installs the fork guard; called once, when the module is loaded. `check_interrupt`, called on
/// the main thread alone, throws if the program is to stop.
void start_parallel(void (*check_interrupt)());

#ifdef _OPENMP
constexpr int kOpenMP = _OPENMP;  // its version
#else
constexpr int kOpenMP = 0;
#endif

/// Threads used unless the caller asks for a number: OpenMP's own default (OMP_NUM_THREADS, or else
/// the cores that this process may use); one without OpenMP and in a child of fork().
int default_threads();

/// Throws if the program is to be interrupted; looks at most ten times a second.
void poll_interrupt();

/// Runs kernel() here, with a team of up to `threads` threads, this one among them, which its calls
/// of for_each_task share. A kernel of many steps asks for its team once: to meet takes time.
void with_team(int threads, const std::function<void()>& kernel);

/// Runs share(true) here and share(false), meanwhile, on up to threads - 1 others of the team:
/// fewer where they are busy. Returns when all that began have ended; throws what one threw.
void run_together(int threads, const std::function<void(bool)>& share);

/// At most one thread for each 100 microseconds of work: waking a thread costs some of them.
inline int threads_for(double nanoseconds, int threads) {
  return static_cast<int>(std::clamp(nanoseconds / 1e5, 1.0, static_cast<double>(threads)));
}

/// Runs worker(i) for each i in [0, tasks). make_worker() is called once on each thread: scratch
/// memory lives in the worker. The first exception, an interrupt too, stops the hand-out and is
/// rethrown here.
template <class MakeWorker>
void for_each_task(index_t tasks, int threads, MakeWorker&& make_worker) {
  if (tasks <= 0) return;
  std::atomic<index_t> next{0};
  run_together(static_cast<int>(std::min<index_t>(threads, tasks)), [&](bool caller) {
    std::optional<decltype(make_worker())> worker;
    try {
      worker.emplace(make_worker());
      for (index_t i; (i = next.fetch_add(1)) < tasks;) {
        if (caller && i > 0) poll_interrupt();
        (*worker)(i);
      }
    } catch (...) {
      if (!caller && !worker) return;  // no memory for its scratch: leaves its share to the others
      next = tasks;
      throw;
    }
  });
}

}  // namespace rlvar
