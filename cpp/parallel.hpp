// The only OpenMP of the package: independent tasks, handed out to threads.
//
// What a task computes depends on the data alone, never on the thread that runs it or on how many
// there are; kernels merge the results of tasks in the order of the tasks. Results are therefore
// bit-identical for any number of threads.
//
// Fork guard: libgomp's thread pool does not survive fork(), and a child that enters a parallel
// region hangs. A child of fork() runs its tasks serially.
//
// Interrupts: between its tasks the calling thread looks, a few times a second, whether the user
// wants to stop. Kernels that are not to be left half done write to memory of their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
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

/// Throws if the program is to be interrupted; set by the module.
inline void (*check_interrupt)() = nullptr;

/// Calls check_interrupt, at most ten times a second on each thread.
inline void poll_interrupt() {
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point next{};
  const auto now = Clock::now();
  if (check_interrupt == nullptr || now < next) return;
  next = now + std::chrono::milliseconds(100);
  check_interrupt();
}

/// Threads used unless the caller asks for a number: OpenMP's own default (OMP_NUM_THREADS).
inline int default_threads() {
#ifdef _OPENMP
  return forked_child ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// At most one thread for each 100 microseconds of work: waking a thread costs some of them.
inline int threads_for(double nanoseconds, int threads) {
  return static_cast<int>(std::clamp(nanoseconds / 1e5, 1.0, static_cast<double>(threads)));
}

/// Runs worker(i) for each i in [0, tasks). make_worker() is called once on each thread: scratch
/// memory lives in the worker. The first exception, an interrupt too, stops the hand-out and is
/// rethrown here.
template <class MakeWorker>
void for_each_task(index_t tasks, int threads, MakeWorker&& make_worker) {
  const index_t useful = std::min<index_t>(threads, tasks);
  if (useful <= 1 || forked_child) {
    if (tasks <= 0) return;
    auto worker = make_worker();
    for (index_t i = 0; i < tasks; ++i) {
      if (i > 0) poll_interrupt();
      worker(i);
    }
    return;
  }
#ifdef _OPENMP
  std::atomic<index_t> next{0};
  std::exception_ptr error;
#pragma omp parallel num_threads(static_cast<int>(useful))
  {
    try {
      auto worker = make_worker();
      const bool caller = omp_get_thread_num() == 0;
      for (index_t i; (i = next.fetch_add(1)) < tasks;) {
        if (caller) poll_interrupt();
        worker(i);
      }
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
