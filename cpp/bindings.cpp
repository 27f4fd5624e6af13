// The module: take pointers, release the GIL, call one kernel. Arrays arrive validated
// (python/rlvar/_check.py): dtypes, shapes and strides are what the kernels expect.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <Eigen/Core>
#include <optional>

#include "cpu.hpp"
#include "gram.hpp"
#include "means.hpp"
#include "moments.hpp"
#include "pairwise.hpp"
#include "parallel.hpp"
#include "returns.hpp"
#include "shared.hpp"

namespace py = pybind11;

namespace {

using rlvar::index_t;
using rlvar::View2;
using rlvar::View3;
using Int64s = py::array_t<std::int64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;
using Strided = py::array_t<double>;
using Bytes = py::array_t<std::uint8_t>;

template <class T>
index_t stride(const py::array_t<T>& a, int axis) {
  return a.strides(axis) / static_cast<index_t>(sizeof(T));
}

template <class T>
View2<const T> view2(const py::array_t<T>& a) {
  return {a.data(), a.shape(0), a.shape(1), stride(a, 0), stride(a, 1)};
}

template <class T>
View2<T> mutable_view2(py::array_t<T>& a) {
  return {a.mutable_data(), a.shape(0), a.shape(1), stride(a, 0), stride(a, 1)};
}

template <class T>
View3<const T> view3(const py::array_t<T>& a) {
  return {a.data(), a.shape(0), a.shape(1), a.shape(2), stride(a, 0), stride(a, 1)};
}

rlvar::Steps steps_of(const std::optional<Int64s>& lengths, const std::optional<Bytes>& mask) {
  rlvar::Steps steps;
  if (lengths) steps.lengths = lengths->data();
  if (mask) steps.mask = view2(*mask);
  return steps;
}

template <class T>
rlvar::Terms<T> terms_of(const py::array_t<T>& scores, const Strided& weights,
                         const std::optional<Int64s>& lengths, const std::optional<Bytes>& mask,
                         const std::optional<Doubles>& sample_weight) {
  return {view3(scores), view2(weights), steps_of(lengths, mask),
          sample_weight ? sample_weight->data() : nullptr};
}

/// Weights (E, N, T), C-contiguous.
View3<const double> weight_sets(const Doubles& weights) {
  const index_t n = weights.shape(1), t = weights.shape(2);
  return {weights.data(), weights.shape(0), n, t, n * t, t};
}

template <class T>
rlvar::Trajectories<T> trajectories_of(const py::array_t<T>& rewards, double gamma,
                                       const std::optional<py::array_t<T>>& gammas,
                                       const std::optional<Int64s>& lengths,
                                       const std::optional<Bytes>& mask,
                                       const std::optional<Bytes>& terminated,
                                       const std::optional<Bytes>& truncated,
                                       const std::optional<py::array_t<T>>& next_values,
                                       const std::optional<py::array_t<T>>& bootstrap) {
  rlvar::Trajectories<T> in;
  in.rewards = view2(rewards);
  in.gamma = gamma;
  if (gammas) in.gammas = view2(*gammas);
  in.steps = steps_of(lengths, mask);
  if (terminated) in.terminated = view2(*terminated);
  if (truncated) in.truncated = view2(*truncated);
  if (next_values) in.next_values = view2(*next_values);
  if (bootstrap) in.bootstrap = bootstrap->data();
  return in;
}

int threads_or_default(std::optional<int> threads) {
  return threads ? *threads : rlvar::default_threads();
}

template <class T>
void bind_kernels(py::module_& m) {
  using Array = py::array_t<T>;

  using MaybeArray = std::optional<Array>;

  m.def(
      "all_finite",
      [](const Array& array) {
        const auto view = view2(array);
        py::gil_scoped_release release;
        return rlvar::all_finite(view);
      },
      py::arg("array").noconvert());

  // The scans return whether everything that they read was finite.
  m.def(
      "reward_to_go",
      [](const Array& rewards, double gamma, const MaybeArray& gammas,
         const std::optional<Int64s>& lengths, const std::optional<Bytes>& mask,
         const std::optional<Bytes>& terminated, const std::optional<Bytes>& truncated,
         const MaybeArray& next_values, const MaybeArray& bootstrap, Array out) {
        auto in = trajectories_of(rewards, gamma, gammas, lengths, mask, terminated, truncated,
                                  next_values, bootstrap);
        const auto result = mutable_view2(out);
        py::gil_scoped_release release;
        return rlvar::reward_to_go(in, result, rlvar::default_threads());
      },
      py::arg("rewards").noconvert(), py::arg("gamma"), py::arg("gammas").noconvert(),
      py::arg("lengths"), py::arg("mask"), py::arg("terminated"), py::arg("truncated"),
      py::arg("next_values").noconvert(), py::arg("bootstrap").noconvert(),
      py::arg("out").noconvert());

  m.def(
      "gae",
      [](const Array& rewards, const Array& values, double lambda, double gamma,
         const MaybeArray& gammas, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Bytes>& terminated,
         const std::optional<Bytes>& truncated, const MaybeArray& next_values,
         const MaybeArray& bootstrap, Array advantages, Array returns) {
        auto in = trajectories_of(rewards, gamma, gammas, lengths, mask, terminated, truncated,
                                  next_values, bootstrap);
        in.values = view2(values);
        in.lambda = lambda;
        const auto first = mutable_view2(advantages), second = mutable_view2(returns);
        py::gil_scoped_release release;
        return rlvar::gae(in, first, second, rlvar::default_threads());
      },
      py::arg("rewards").noconvert(), py::arg("values").noconvert(), py::arg("lambda"),
      py::arg("gamma"), py::arg("gammas").noconvert(), py::arg("lengths"), py::arg("mask"),
      py::arg("terminated"), py::arg("truncated"), py::arg("next_values").noconvert(),
      py::arg("bootstrap").noconvert(), py::arg("advantages").noconvert(),
      py::arg("returns").noconvert());

  m.def(
      "vtrace",
      [](const Array& rewards, const Array& values, const Array& rho, const Array& cut,
         double gamma, const MaybeArray& gammas, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Bytes>& terminated,
         const std::optional<Bytes>& truncated, const MaybeArray& next_values,
         const MaybeArray& bootstrap, Array targets, Array advantages) {
        auto in = trajectories_of(rewards, gamma, gammas, lengths, mask, terminated, truncated,
                                  next_values, bootstrap);
        in.values = view2(values);
        in.rho = view2(rho);
        in.cut = view2(cut);
        const auto first = mutable_view2(targets), second = mutable_view2(advantages);
        py::gil_scoped_release release;
        return rlvar::vtrace(in, first, second, rlvar::default_threads());
      },
      py::arg("rewards").noconvert(), py::arg("values").noconvert(), py::arg("rho").noconvert(),
      py::arg("cut").noconvert(), py::arg("gamma"), py::arg("gammas").noconvert(),
      py::arg("lengths"), py::arg("mask"), py::arg("terminated"), py::arg("truncated"),
      py::arg("next_values").noconvert(), py::arg("bootstrap").noconvert(),
      py::arg("targets").noconvert(), py::arg("advantages").noconvert());

  m.def(
      "comoments",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         index_t block, double divisor, Strided out, std::optional<Strided> mean,
         std::optional<Strided> tail, std::optional<int> threads) {
        auto terms = terms_of(scores, weights, lengths, mask, sample_weight);
        terms.block = block;
        const auto result = mutable_view2(out);
        const auto mean_view = mean ? mutable_view2(*mean) : View2<double>();
        const auto tail_view = tail ? mutable_view2(*tail) : View2<double>();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::comoments(terms, divisor, result, mean_view, tail_view, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("block"), py::arg("divisor"),
      py::arg("out").noconvert(), py::arg("mean").noconvert(), py::arg("tail").noconvert(),
      py::arg("threads"));

  m.def(
      "shared_moments",
      [](const Array& scores, const Doubles& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         Doubles sums, std::optional<int> threads) {
        const rlvar::Terms<T> terms{view3(scores),
                                    {},
                                    steps_of(lengths, mask),
                                    sample_weight ? sample_weight->data() : nullptr,
                                    1};
        const auto sets = weight_sets(weights);
        double* result = sums.mutable_data();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::shared_moments(terms, sets, result, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("sums").noconvert(), py::arg("threads"));

  m.def(
      "gradients",
      [](const Array& scores, const Doubles& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, Doubles out, std::optional<int> threads) {
        const auto in = view3(scores);
        const auto sets = weight_sets(weights);
        const auto steps = steps_of(lengths, mask);
        double* result = out.mutable_data();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::gradients(in, sets, steps, result, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("out").noconvert(), py::arg("threads"));

  m.def(
      "projections",
      [](const Array& scores, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const Doubles& vectors, Doubles out,
         std::optional<int> threads) {
        const auto in = view3(scores);
        const auto steps = steps_of(lengths, mask);
        const double* with = vectors.data();
        double* result = out.mutable_data();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::projections(in, steps, with, result, count);
      },
      py::arg("scores").noconvert(), py::arg("lengths"), py::arg("mask"),
      py::arg("vectors").noconvert(), py::arg("out").noconvert(), py::arg("threads"));

  m.def(
      "means",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         Strided mean, std::optional<int> threads) {
        const auto terms = terms_of(scores, weights, lengths, mask, sample_weight);
        const auto result = mutable_view2(mean);
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::means(terms, result, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("mean").noconvert(), py::arg("threads"));

  m.def(
      "unit_squares",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         const Strided& mean, const Int64s& members, const Int64s& offsets, Strided step,
         Strided growth, std::optional<Strided> step_sum, std::optional<Strided> growth_sum,
         std::optional<int> threads) {
        const auto terms = terms_of(scores, weights, lengths, mask, sample_weight);
        const auto mean_view = view2(mean);
        const std::int64_t* member = members.data();
        const std::int64_t* offset = offsets.data();
        const index_t units = offsets.shape(0) - 1;
        const rlvar::UnitSquares out{step.mutable_data(), growth.mutable_data(),
                                     step_sum ? step_sum->mutable_data() : nullptr,
                                     growth_sum ? growth_sum->mutable_data() : nullptr};
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::unit_squares(terms, mean_view, member, offset, units, out, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("mean").noconvert(),
      py::arg("members").noconvert(), py::arg("offsets").noconvert(), py::arg("step").noconvert(),
      py::arg("growth").noconvert(), py::arg("step_sum").noconvert(),
      py::arg("growth_sum").noconvert(), py::arg("threads"));
}

}  // namespace

/// Raises what Ctrl-C, or another signal's handler in Python, asks for.
void raise_signals() {
  py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

PYBIND11_MODULE(RLVAR_MODULE, m) {
  rlvar::install_fork_guard();
  rlvar::check_interrupt = &raise_signals;
  bind_kernels<float>(m);
  bind_kernels<double>(m);
  m.def(
      "add_product",
      [](const Strided& x, double factor, Strided sums, std::optional<int> threads) {
        const auto in = view2(x);
        const auto result = mutable_view2(sums);
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::add_product(in, factor, result, count);
      },
      py::arg("x").noconvert(), py::arg("factor"), py::arg("sums").noconvert(), py::arg("threads"));
  m.def(
      "add_matmul",
      [](const Strided& a, const Strided& b, Strided out, std::optional<int> threads) {
        const auto left = view2(a), right = view2(b);
        const auto result = mutable_view2(out);
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::add_matmul(left, right, result, count);
      },
      py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("out").noconvert(),
      py::arg("threads"));
  m.def("default_threads", &rlvar::default_threads);
  m.def("supported_isas", &rlvar::supported_isas);
#ifdef _OPENMP
  m.attr("openmp") = _OPENMP;
#else
  m.attr("openmp") = 0;
#endif
  m.attr("eigen_version") =
      py::str("{}.{}.{}").format(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
}
