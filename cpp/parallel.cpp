// OpenMP provides the threads; how they wait is our own.
//
// At its barriers OpenMP spins, which takes the cores from whoever works on them. So there is one
// parallel region for a kernel, not one for each of its steps: inside it the calling thread runs
// the kernel, and the others sleep until it has tasks. Nobody waits for a thread that has not
// begun; only at the end do all meet, asleep too.
//
// Fork guard: OpenMP's threads do not survive fork(), and a child that enters a parallel region
// hangs. A child runs its tasks serially.
#include "parallel.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

namespace rlvar {

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<bool> forked_child{false};
void (*check)() = nullptr;

/// Whether this is the thread that Python runs signal handlers on.
bool on_main_thread() {
#ifdef __linux__
  return syscall(SYS_gettid) == getpid();
#else
  return pthread_main_np() != 0;
#endif
}

#ifdef _OPENMP
/// Returns what a call throws.
template <class Call>
std::exception_ptr error_of(Call&& call) {
  try {
    call();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

/// The threads of one parallel region.
class Team {
  static constexpr auto kAwake = std::chrono::microseconds(50);  // what it takes to wake up
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(bool)>* share_ = nullptr;
  std::exception_ptr error_;                           // of a helper
  std::atomic<int> wanted_{0}, running_{0}, left_{0};  // helpers: to come, in a share, gone
  std::atomic<bool> ended_{false};

  /// Waits until ready(): awake for a moment, giving way to whoever has work, then asleep.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, Ready ready) {
    if (!ready()) {
      lock.unlock();
      for (const auto end = Clock::now() + kAwake; !ready() && Clock::now() < end;) sched_yield();
      lock.lock();
    }
    changed.wait(lock, ready);
  }

 public:
  bool sharing() const { return share_ != nullptr; }

  void share(int helpers, const std::function<void(bool)>& share) {
    {
      std::lock_guard lock(mutex_);
      share_ = &share;
      wanted_ = helpers;
    }
    wake_.notify_all();
    std::exception_ptr error = error_of([&] { share(true); });
    {
      std::unique_lock lock(mutex_);
      wanted_ = 0;
      wait(lock, done_, [&] { return running_ == 0; });
      share_ = nullptr;
      std::exception_ptr other = std::exchange(error_, nullptr);
      if (!error) error = other;
    }
    if (error) std::rethrow_exception(error);
  }

  void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wait(lock, wake_, [&] { return wanted_ > 0 || ended_; });
      if (wanted_ == 0) break;
      --wanted_;
      ++running_;
      lock.unlock();
      std::exception_ptr error = error_of([&] { (*share_)(false); });
      lock.lock();
      if (error && !error_) error_ = error;
      if (--running_ == 0) done_.notify_one();
    }
    ++left_;
    done_.notify_one();
  }

  /// Sees all helpers off; what OpenMP's barrier has left to wait for is then short.
  void leave(int helpers) {
    std::unique_lock lock(mutex_);
    ended_ = true;
    wake_.notify_all();
    wait(lock, done_, [&] { return left_ == helpers; });
  }
};

thread_local Team* team = nullptr;  // that this thread leads

/// As many of `threads` as can be started. Where one cannot, OpenMP ends the process; so those that
/// it is about to start are tried before, which leaves it a tiny race. Where not all could be
/// started, none are: the kernel needs memory too. (What is tried must not allocate: that would map
/// an arena for each thread.)
int startable(int threads) {
  thread_local int held = 1;  // by OpenMP, for this thread: it drops what a region does not need
  threads = std::min(threads, omp_get_thread_limit());
  std::vector<pthread_t> tried(static_cast<std::size_t>(std::max(threads - held, 0)));
  std::mutex hold;
  std::unique_lock lock(hold);
  std::size_t started = 0;
  const auto wait = [](void* until) -> void* {
    std::lock_guard released(*static_cast<std::mutex*>(until));
    return nullptr;
  };
  while (started < tried.size() && !pthread_create(&tried[started], nullptr, wait, &hold))
    ++started;
  lock.unlock();
  if (started < tried.size()) threads = held;
  while (started > 0) pthread_join(tried[--started], nullptr);
  return held = threads;
}
#endif

}  // namespace

void start_parallel(void (*check_interrupt)()) {
  check = check_interrupt;
  pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
}

int default_threads() {
#ifdef _OPENMP
  if (!forked_child) return omp_get_max_threads();
#endif
  return 1;
}

void poll_interrupt() {
  static thread_local Clock::time_point next{};
  const auto now = Clock::now();
  if (now < next) return;
  next = now + std::chrono::milliseconds(100);
  if (on_main_thread()) check();
}

void with_team([[maybe_unused]] int threads, const std::function<void()>& kernel) {
#ifdef _OPENMP
  // Where cores are busy, to meet can take longer than a short kernel does: then up to 64 kernels
  // do without a team before another one tries.
  thread_local int alone = 0, next_alone = 1;
  if (threads > 1 && !team && !forked_child && alone-- <= 0) {
    Team own;
    std::exception_ptr error;
    threads = startable(threads);
    sigset_t all, before;
    sigfillset(&all);  // threads that start now see no signals: they are for the program's own
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Clock::duration working{};
    const auto begin = Clock::now();
#pragma omp parallel num_threads(threads)
    if (omp_get_thread_num() > 0) {
      own.help();
    } else {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      team = &own;
      const auto met = Clock::now();
      error = error_of(kernel);
      working = Clock::now() - met;
      own.leave(omp_get_num_threads() - 1);
      team = nullptr;
    }
    const bool late = 2 * (Clock::now() - begin) > 3 * working;
    alone = late ? next_alone : 0;
    next_alone = late ? std::min(2 * next_alone, 64) : std::max(next_alone / 2, 1);
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  kernel();
}

void run_together([[maybe_unused]] int threads, const std::function<void(bool)>& share) {
#ifdef _OPENMP
  return with_team(threads, [&] {
    // A signal's handler may compute while this thread's team does.
    const bool free = team && threads > 1 && !team->sharing();
    free ? team->share(threads - 1, share) : share(true);
  });
#endif
  share(true);
}

}  // namespace rlvar
