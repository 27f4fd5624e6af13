// The module: take pointers, release the GIL, call one kernel. Arrays arrive validated
// (python/rlvar/_check.py): dtypes, shapes and strides are what the kernels expect.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <Eigen/Core>
#include <optional>

#include "cpu.hpp"
#include "moments.hpp"
#include "pairwise.hpp"
#include "parallel.hpp"
#include "returns.hpp"

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

int threads_or_default(std::optional<int> threads) {
  return threads ? *threads : rlvar::default_threads();
}

template <class T>
void bind_kernels(py::module_& m) {
  using Array = py::array_t<T>;

  m.def(
      "reward_to_go",
      [](const Array& rewards, T gamma, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, Array out, std::optional<int> threads) {
        const auto in = view2(rewards);
        const auto result = mutable_view2(out);
        const auto steps = steps_of(lengths, mask);
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::reward_to_go(in, gamma, steps, result, count);
      },
      py::arg("rewards").noconvert(), py::arg("gamma"), py::arg("lengths"), py::arg("mask"),
      py::arg("out").noconvert(), py::arg("threads"));

  m.def(
      "covariance",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         double normaliser, Doubles out, std::optional<int> threads) {
        const auto terms = terms_of(scores, weights, lengths, mask, sample_weight);
        const auto result =
            View2<double>({out.mutable_data(), out.shape(0), out.shape(1), out.shape(1), 1});
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::covariance(terms, normaliser, result, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("normaliser"), py::arg("out").noconvert(),
      py::arg("threads"));

  m.def(
      "gradients",
      [](const Array& scores, const Doubles& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, Doubles out, std::optional<int> threads) {
        const auto in = view3(scores);
        const View3<const double> sets{weights.data(),
                                       weights.shape(0),
                                       weights.shape(1),
                                       weights.shape(2),
                                       weights.shape(1) * weights.shape(2),
                                       weights.shape(2)};
        const auto steps = steps_of(lengths, mask);
        double* result = out.mutable_data();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::gradients(in, sets, steps, result, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("out").noconvert(), py::arg("threads"));

  m.def(
      "moments",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const std::optional<Doubles>& sample_weight,
         Strided mean, Doubles step_squares, Doubles growth_squares, std::optional<int> threads) {
        const auto terms = terms_of(scores, weights, lengths, mask, sample_weight);
        const auto mean_view = mutable_view2(mean);
        double* step = step_squares.mutable_data();
        double* growth = growth_squares.mutable_data();
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::moments(terms, mean_view, step, growth, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("sample_weight"), py::arg("mean").noconvert(),
      py::arg("step_squares").noconvert(), py::arg("growth_squares").noconvert(),
      py::arg("threads"));

  m.def(
      "deletion_losses",
      [](const Array& scores, const Strided& weights, const std::optional<Int64s>& lengths,
         const std::optional<Bytes>& mask, const Strided& mean, const Int64s& members,
         const Int64s& offsets, Strided step_loss, Strided growth_loss,
         std::optional<int> threads) {
        const auto terms = terms_of(scores, weights, lengths, mask, std::nullopt);
        const auto mean_view = view2(mean);
        const std::int64_t* member = members.data();
        const std::int64_t* offset = offsets.data();
        const index_t units = offsets.shape(0) - 1;
        const auto step = mutable_view2(step_loss);
        const auto growth = mutable_view2(growth_loss);
        const int count = threads_or_default(threads);
        py::gil_scoped_release release;
        rlvar::deletion_losses(terms, mean_view, member, offset, units, step, growth, count);
      },
      py::arg("scores").noconvert(), py::arg("weights").noconvert(), py::arg("lengths"),
      py::arg("mask"), py::arg("mean").noconvert(), py::arg("members").noconvert(),
      py::arg("offsets").noconvert(), py::arg("step_loss").noconvert(),
      py::arg("growth_loss").noconvert(), py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(RLVAR_MODULE, m) {
  rlvar::install_fork_guard();
  bind_kernels<float>(m);
  bind_kernels<double>(m);
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
