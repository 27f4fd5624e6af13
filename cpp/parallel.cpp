// A pool of threads that sleep until a kernel asks for help.
//
// Not OpenMP: its threads spin at barriers, which takes the cores from whoever works on them; it
// ends the process where a thread cannot be started; and it hangs in a child of fork(). Here nobody
// waits for a helper that has not begun, so that a busy machine costs no more than the help.
//
// Fork guard: the pool's threads do not survive fork(); a child runs its tasks serially.
#include "parallel.hpp"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif

namespace rlvar {

namespace {

std::atomic<bool> forked_child{false};
void (*check)() = nullptr;
int threads_at_start = 1;

/// Work that wants helpers.
struct Job {
  const std::function<void(bool)>& share;
  int wanted, running = 0;
  std::exception_ptr error;
};

class Pool {
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<Job*> jobs_;  // that want helpers
  int threads_ = 0;

  void withdraw(Job* job) {
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), job), jobs_.end());
  }

  [[noreturn]] void help() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.back();
      ++job.running;
      if (--job.wanted == 0) withdraw(&job);
      lock.unlock();
      std::exception_ptr error;
      try {
        job.share(false);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) job.error = error;
      if (--job.running == 0) done_.notify_all();
    }
  }

  /// Starts a thread, which is to see no signals: they are for the program's own. Returns whether
  /// it could.
  bool start() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
      std::thread([this] { help(); }).detach();
      ++threads_;
    } catch (const std::exception&) {
      started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

 public:
  void run(int helpers, const std::function<void(bool)>& share) {
    Job job{share, helpers, 0, nullptr};
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(&job);
      while (threads_ < helpers && start()) continue;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    {
      struct Wait {  // however the caller's share ends
        Pool& pool;
        Job& job;
        ~Wait() {
          std::unique_lock lock(pool.mutex_);
          pool.withdraw(&job);
          pool.done_.wait(lock, [&] { return job.running == 0; });
        }
      } wait{*this, job};
      share(true);
    }
    if (job.error) std::rethrow_exception(job.error);
  }
};

/// Whether this is the thread that Python runs signal handlers on.
bool on_main_thread() {
#ifdef __linux__
  return syscall(SYS_gettid) == getpid();
#else
  return pthread_main_np() != 0;
#endif
}

}  // namespace

void start_parallel(void (*check_interrupt)()) {
  check = check_interrupt;
  pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  int count = wanted ? std::atoi(wanted) : 0;
#ifdef __linux__
  cpu_set_t cores;
  if (count < 1 && sched_getaffinity(0, sizeof cores, &cores) == 0) count = CPU_COUNT(&cores);
#endif
  if (count < 1) count = static_cast<int>(std::thread::hardware_concurrency());
  threads_at_start = std::max(count, 1);
}

int default_threads() { return forked_child ? 1 : threads_at_start; }

void poll_interrupt() {
  using Clock = std::chrono::steady_clock;
  static thread_local Clock::time_point next{};
  const auto now = Clock::now();
  if (now < next) return;
  next = now + std::chrono::milliseconds(100);
  if (on_main_thread()) check();
}

void run_together(int helpers, const std::function<void(bool)>& share) {
  if (helpers <= 0 || forked_child) return share(true);
  static Pool& pool = *new Pool;  // its threads outlive the destructors at exit
  pool.run(helpers, share);
}

}  // namespace rlvar
