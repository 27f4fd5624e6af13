// The module: take pointers, release the GIL, call one kernel. Arrays arrive validated
// (python/rlvar/_check.py), but they are the caller's, who can change them at any time. Small ones,
// which hold indices, are copied and then checked here; what kernels read of the others is numbers
// and marks alone, whatever they are.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <Eigen/Core>
#include <exception>
#include <initializer_list>
#include <optional>
#include <tuple>

#include "covariance.hpp"
#include "cpu.hpp"
#include "gram.hpp"
#include "means.hpp"
#include "parallel.hpp"
#include "passes.hpp"
#include "returns.hpp"

namespace py = pybind11;

namespace {

using rlvar::index_t;
using rlvar::Kind;
using rlvar::View2;
using rlvar::View3;
using Int64s = py::array_t<std::int64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;
using Strided = py::array_t<double>;
using Bytes = py::array_t<std::uint8_t>;
using Threads = std::optional<int>;

void refuse(bool changed) {
  if (changed) throw py::value_error("an argument has changed since it was checked");
}

/// Raises unless an array is aligned and has the shape that it had when it was checked.
template <class T, int flags>
void expect(const py::array_t<T, flags>& a, std::initializer_list<index_t> shape) {
  bool same = a.ndim() == static_cast<index_t>(shape.size()) &&
              reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T) == 0;
  for (index_t i = 0; same && i < a.ndim(); ++i) {
    same = a.shape(i) == shape.begin()[i] && a.strides(i) % static_cast<index_t>(sizeof(T)) == 0;
  }
  refuse(!same);
}

template <class T, int flags>
index_t stride(const py::array_t<T, flags>& a, int axis) {
  return a.strides(axis) / static_cast<index_t>(sizeof(T));
}

template <class T, int flags>
View2<const T> view(const py::array_t<T, flags>& a, index_t rows, index_t cols) {
  expect(a, {rows, cols});
  return {a.data(), rows, cols, stride(a, 0), stride(a, 1)};
}
template <class T, int flags>
View2<T> result(py::array_t<T, flags>& a, index_t rows, index_t cols) {
  expect(a, {rows, cols});
  return {a.mutable_data(), rows, cols, stride(a, 0), stride(a, 1)};
}
/// The same where None came for "absent".
template <class T>
View2<const T> view(const std::optional<py::array_t<T>>& a, index_t rows, index_t cols) {
  return a ? view(*a, rows, cols) : View2<const T>();
}
template <class T>
View2<T> result(std::optional<py::array_t<T>>& a, index_t rows, index_t cols) {
  return a ? result(*a, rows, cols) : View2<T>();
}

/// A copy of the numbers of a small array (size,), which need not be aligned; empty if absent.
template <class To, class T>
std::vector<To> copied(const std::optional<py::array_t<T, py::array::c_style>>& a, index_t size) {
  if (!a) return {};
  refuse(a->ndim() != 1 || a->shape(0) != size);
  std::vector<T> numbers(static_cast<std::size_t>(size));
  if (size) std::memcpy(numbers.data(), a->data(), static_cast<std::size_t>(a->nbytes()));
  return {numbers.begin(), numbers.end()};
}
/// A copy of indices, none of them outside [low, high].
rlvar::Indices indices(const std::optional<Int64s>& a, index_t size, index_t low, index_t high) {
  auto copy = copied<index_t>(a, size);
  for (const index_t i : copy) {
    refuse(i < low || i > high);
  }
  return copy;
}

rlvar::Steps steps_of(const std::optional<Int64s>& lengths, const std::optional<Bytes>& mask,
                      index_t n, index_t t) {
  return {indices(lengths, n, 0, t), view(mask, n, t)};
}

/// Terms in Python: scores, weights, lengths, mask, sample_weight; and, where scores (M, D) are
/// packed, which row each rollout starts at, and T.
template <class T>
using TermsTuple =
    std::tuple<py::array_t<T>, std::optional<Strided>, std::optional<Int64s>, std::optional<Bytes>,
               std::optional<Doubles>, std::optional<std::tuple<Int64s, index_t>>>;

template <class T>
rlvar::Scores<T> scores_of(const py::array_t<T>& scores) {
  refuse(scores.ndim() != 3 || scores.size() == 0);
  const index_t n = scores.shape(0), t = scores.shape(1), d = scores.shape(2);
  expect(scores, {n, t, d});
  refuse(d > 1 && stride(scores, 2) != 1);
  return rlvar::padded(scores.data(), n, t, d, stride(scores, 0), stride(scores, 1));
}
/// The same of packed scores, whose rows of live steps all exist.
template <class T>
rlvar::Scores<T> scores_of(const py::array_t<T>& scores, const Int64s& starts, index_t t,
                           const rlvar::Indices& lengths) {
  refuse(scores.ndim() != 2 || scores.shape(1) < 1 || t < 1 || starts.size() < 1);
  const index_t m = scores.shape(0), d = scores.shape(1), n = starts.size();
  expect(scores, {m, d});
  refuse(m > 0 && d > 1 && stride(scores, 1) != 1);
  rlvar::Indices at = indices(starts, n, 0, m);
  refuse(lengths.size() != at.size());
  for (std::size_t i = 0; i < at.size(); ++i) {
    refuse(lengths[i] > m - at[i]);
    at[i] *= stride(scores, 0);
  }
  return {scores.data(), n, t, d, std::move(at), stride(scores, 0)};
}

template <class T>
rlvar::Terms<T> terms_of(const TermsTuple<T>& arrays) {
  const auto& [scores, weights, lengths, mask, sample_weight, packed] = arrays;
  rlvar::Terms<T> terms;
  index_t n = 0, t = 0;
  if (packed) {
    n = std::get<0>(*packed).size(), t = std::get<1>(*packed);
    refuse(mask.has_value());
    terms.steps = steps_of(lengths, mask, n, t);
    terms.scores = scores_of(scores, std::get<0>(*packed), t, terms.steps.lengths);
  } else {
    terms.scores = scores_of(scores);
    n = terms.scores.n, t = terms.scores.t;
    terms.steps = steps_of(lengths, mask, n, t);
  }
  terms.weights = view(weights, n, t);
  terms.sample_weight = copied<double>(sample_weight, n);
  return terms;
}

/// Weights (E, N, T), C-contiguous, of E estimators.
template <class T>
View3<const double> weight_sets(const Doubles& weights, const rlvar::Terms<T>& terms) {
  const index_t sets = weights.ndim() ? weights.shape(0) : 0, n = terms.scores.n,
                t = terms.scores.t;
  expect(weights, {sets, n, t});
  return {weights.data(), sets, n, t, n * t, t};
}

/// The options of a scan in Python: gamma, gammas, lengths, mask, terminated, truncated,
/// next_values, bootstrap.
template <class T>
using ScanTuple = std::tuple<double, std::optional<Strided>, std::optional<Int64s>,
                             std::optional<Bytes>, std::optional<Bytes>, std::optional<Bytes>,
                             std::optional<py::array_t<T>>, std::optional<Doubles>>;

template <class T>
rlvar::Trajectories<T> trajectories_of(const py::array_t<T>& rewards, const ScanTuple<T>& options) {
  const auto& [gamma, gammas, lengths, mask, terminated, truncated, next_values, bootstrap] =
      options;
  refuse(rewards.ndim() != 2);
  const index_t n = rewards.shape(0), t = rewards.shape(1);
  rlvar::Trajectories<T> in;
  in.rewards = view(rewards, n, t);
  in.gamma = gamma;
  in.gammas = view(gammas, n, t);
  in.steps = steps_of(lengths, mask, n, t);
  in.terminated = view(terminated, n, t);
  in.truncated = view(truncated, n, t);
  in.next_values = view(next_values, n, t);
  in.bootstrap = copied<double>(bootstrap, n);
  refuse(in.truncated.data && !in.next_values.data);
  return in;
}

thread_local PyThreadState* released = nullptr;  // this thread's, while it holds no GIL

/// Raises what Ctrl-C, or another signal's handler in Python, asks for.
void raise_signals() {
  PyEval_RestoreThread(released);
  std::exception_ptr error;
  if (PyErr_CheckSignals() != 0) error = std::make_exception_ptr(py::error_already_set());
  PyEval_SaveThread();
  if (error) std::rethrow_exception(error);
}

/// Runs a kernel without the GIL. Where the interpreter ends meanwhile, a daemon thread ends as it
/// asks for the GIL: by an exception in Python 3.13 and before, so not in a destructor.
template <class Kernel>
void without_gil(Kernel&& kernel) {
  released = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    kernel();
  } catch (...) {
    error = std::current_exception();
  }
  PyEval_RestoreThread(released);
  if (error) std::rethrow_exception(error);
}

/// Binds a kernel; no argument of another dtype is converted.
template <class Kernel, class... Names>
void def(py::module_& m, const char* name, Kernel&& kernel, Names... names) {
  m.def(name, std::forward<Kernel>(kernel), py::arg(names).noconvert()...);
}

/// Runs a scan on the default threads; returns whether all that it wrote is finite: then so is all
/// that it read.
template <Kind kind, class T>
bool finite(const rlvar::Trajectories<T>& in, View2<T> first, View2<T> second = {}) {
  bool result = false;
  without_gil([&] { result = rlvar::scan<kind>(in, first, second, rlvar::default_threads()); });
  return result;
}

int number_of(Threads threads) { return threads ? *threads : rlvar::default_threads(); }

/// The same with one team for all steps of a kernel that multiplies `rows` rows with each other.
template <class T, class Kernel>
void with_team(const rlvar::Terms<T>& terms, index_t rows, Threads threads, Kernel&& kernel) {
  const double work = terms.pass() * (2.0 + static_cast<double>(rows) / 16.0);
  const int team = rlvar::threads_for(work, number_of(threads));
  without_gil([&] { rlvar::with_team(team, [&] { kernel(team); }); });
}

template <class T>
void bind_kernels(py::module_& m) {
  using Array = py::array_t<T>;
  using Terms = TermsTuple<T>;
  using Options = ScanTuple<T>;

  def(
      m, "reward_to_go",
      [](const Array& rewards, const Options& options, Array out) {
        const auto in = trajectories_of(rewards, options);
        return finite<Kind::kReturns>(in, result(out, in.rewards.rows, in.rewards.cols));
      },
      "rewards", "options", "out");
  def(
      m, "gae",
      [](const Array& rewards, const Array& values, double lambda, const Options& options,
         Array advantages, Array returns) {
        auto in = trajectories_of(rewards, options);
        const index_t n = in.rewards.rows, t = in.rewards.cols;
        in.values = view(values, n, t);
        in.lambda = lambda;
        return finite<Kind::kGae>(in, result(advantages, n, t), result(returns, n, t));
      },
      "rewards", "values", "lambda_", "options", "advantages", "returns");
  def(
      m, "covariance",
      [](const Terms& arrays, index_t block, double divisor, Strided out,
         std::optional<Strided> mean, std::optional<Strided> tail, Threads threads) {
        auto terms = terms_of(arrays);
        terms.block = std::clamp<index_t>(block, 1, terms.scores.t);
        const index_t rows = terms.rows(), d = terms.scores.d;
        const auto to = result(out, rows, rows), mean_to = result(mean, rows, d),
                   tail_to = result(tail, rows, d);
        with_team(terms, rows, threads,
                  [&](int team) { rlvar::covariance(terms, divisor, to, mean_to, tail_to, team); });
      },
      "terms", "block", "divisor", "out", "mean", "tail", "threads");
  def(
      m, "shared_moments",
      [](const Terms& arrays, const Doubles& weights, Doubles sums, Threads threads) {
        const auto terms = terms_of(arrays);
        const auto sets = weight_sets(weights, terms);
        expect(sums, {sets.n, terms.scores.t, terms.scores.t});
        double* to = sums.mutable_data();
        with_team(terms, terms.scores.t, threads,
                  [&](int team) { rlvar::shared_moments(terms, sets, to, team); });
      },
      "terms", "weights", "sums", "threads");
  def(
      m, "gradients",
      [](const Terms& arrays, const Doubles& weights, Doubles out, Threads threads) {
        const auto terms = terms_of(arrays);
        const auto sets = weight_sets(weights, terms);
        expect(out, {sets.n, terms.scores.n, terms.scores.d});
        double* to = out.mutable_data();
        without_gil([&] { rlvar::gradients(terms, sets, to, number_of(threads)); });
      },
      "terms", "weights", "out", "threads");
  def(
      m, "projections",
      [](const Terms& arrays, const Doubles& vectors, Doubles out, Threads threads) {
        const auto terms = terms_of(arrays);
        const double* with = view(vectors, terms.scores.n, terms.scores.d).data;
        double* to = result(out, terms.scores.n, terms.scores.t).data;
        without_gil([&] { rlvar::projections(terms, with, to, number_of(threads)); });
      },
      "terms", "vectors", "out", "threads");
  def(
      m, "means",
      [](const Terms& arrays, Strided mean, Threads threads) {
        const auto terms = terms_of(arrays);
        const auto to = result(mean, terms.scores.t, terms.scores.d);
        without_gil([&] { rlvar::means(terms, to, number_of(threads)); });
      },
      "terms", "mean", "threads");
  def(
      m, "unit_squares",
      [](const Terms& arrays, const Strided& mean, const Int64s& members, const Int64s& offsets,
         Doubles step, Doubles growth, std::optional<Doubles> step_sum,
         std::optional<Doubles> growth_sum, Threads threads) {
        const auto terms = terms_of(arrays);
        const index_t n = terms.scores.n, t = terms.scores.t;
        const auto about = view(mean, t, terms.scores.d);
        const auto member = indices(members, members.size(), 0, n - 1);
        const auto offset =
            indices(offsets, offsets.size(), 0, static_cast<index_t>(member.size()));
        refuse(offset.empty() || !std::is_sorted(offset.begin(), offset.end()));
        const index_t units = static_cast<index_t>(offset.size()) - 1;
        const rlvar::UnitSquares to{result(step, units, t).data, result(growth, units, t).data,
                                    step_sum ? result(*step_sum, units, t).data : nullptr,
                                    growth_sum ? result(*growth_sum, units, t).data : nullptr};
        without_gil(
            [&] { rlvar::unit_squares(terms, about, member, offset, to, number_of(threads)); });
      },
      "terms", "mean", "members", "offsets", "step", "growth", "step_sum", "growth_sum", "threads");
}

}  // namespace

PYBIND11_MODULE(RLVAR_MODULE, m, py::mod_gil_not_used()) {
  rlvar::start_parallel(&raise_signals);
  bind_kernels<float>(m);
  bind_kernels<double>(m);
  def(
      m, "add_product",
      [](const Doubles& x, double factor, Strided sums, Threads threads) {
        refuse(x.ndim() != 2);
        const auto in = view(x, x.shape(0), x.shape(1));
        const auto to = result(sums, in.rows, in.rows);
        without_gil([&] { rlvar::add_product(in, factor, to, number_of(threads)); });
      },
      "x", "factor", "sums", "threads");
  def(
      m, "add_matmul",
      [](const Strided& a, const Strided& b, Strided out, Threads threads) {
        refuse(a.ndim() != 2 || b.ndim() != 2);
        const auto left = view(a, a.shape(0), a.shape(1)), right = view(b, a.shape(1), b.shape(1));
        const auto to = result(out, left.rows, right.cols);
        refuse((left.cols > 1 && left.col_stride != 1) || (to.cols > 1 && to.col_stride != 1));
        without_gil([&] { rlvar::add_matmul(left, right, to, number_of(threads)); });
      },
      "a", "b", "out", "threads");
  m.def("default_threads", &rlvar::default_threads);
  m.attr("openmp") = rlvar::kOpenMP;
  m.def("supported_isas", &rlvar::supported_isas);
  m.attr("eigen_version") =
      py::str("{}.{}.{}").format(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
}
