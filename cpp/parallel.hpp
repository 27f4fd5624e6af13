// The only OpenMP of the package: independent tasks, handed out to threads.
//
// What a task computes depends on the data alone, never on the thread that runs it or on how many
// there are; kernels merge the results of tasks in the order of the tasks. Results are therefore
// bit-identical for any number of threads.
//
// Fork guard: libgomp's thread pool does not survive fork(), and a child that enters a parallel
// region hangs. A child of fork() runs its tasks serially.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "views.hpp"

namespace rlvar {

inline std::atomic<bool> forked_child{false};

/// Installs the fork guard; called once, when the module is loaded.
inline void install_fork_guard() {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
#endif
}

/// Threads used unless the caller asks for a number: OpenMP's own default (OMP_NUM_THREADS).
inline int default_threads() {
#ifdef _OPENMP
  return forked_child ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Runs worker(i) for each i in [0, tasks). make_worker() is called once on each thread: scratch
/// memory lives in the worker. The first exception stops the hand-out and is rethrown here.
template <class MakeWorker>
void for_each_task(index_t tasks, int threads, MakeWorker&& make_worker) {
  const index_t useful = std::min<index_t>(threads, tasks);
  if (useful <= 1 || forked_child) {
    if (tasks <= 0) return;
    auto worker = make_worker();
    for (index_t i = 0; i < tasks; ++i) worker(i);
    return;
  }
#ifdef _OPENMP
  std::atomic<index_t> next{0};
  std::exception_ptr error;
#pragma omp parallel num_threads(static_cast<int>(useful))
  {
    try {
      auto worker = make_worker();
      for (index_t i; (i = next.fetch_add(1)) < tasks;) worker(i);
    } catch (...) {
      next = tasks;
#pragma omp critical
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
#else
  for_each_task(tasks, 1, make_worker);
#endif
}

}  // namespace rlvar
