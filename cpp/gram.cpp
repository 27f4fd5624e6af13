// Arithmetic: 2 M N K flops, by Eigen on one thread; a task is one tile of the result, so that no
// bit depends on the number of threads. BLAS libraries do not keep that.
#include "gram.hpp"

#include <Eigen/Core>

#include "parallel.hpp"
#include "tiles.hpp"

namespace rlvar {

namespace {

constexpr index_t kHeight = 64, kWidth = 256;  // of a tile

template <int Order>
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Order>;
template <class M>
using Map = Eigen::Map<M, 0, Eigen::OuterStride<>>;

template <int Order>
void add(const Map<const Matrix<Eigen::RowMajor>>& a, const Map<const Matrix<Order>>& b,
         Map<Matrix<Eigen::RowMajor>> out, int threads) {
  const index_t across = ceil_div(out.cols(), kWidth);
  const double flops = 2.0 * static_cast<double>(out.size()) * static_cast<double>(a.cols());
  for_each_task(ceil_div(out.rows(), kHeight) * across, threads_for(flops / 10, threads), [&] {
    return [&](index_t task) {
      const index_t i = task / across * kHeight, j = task % across * kWidth;
      const index_t height = std::min(kHeight, out.rows() - i),
                    width = std::min(kWidth, out.cols() - j);
      out.block(i, j, height, width).noalias() += a.middleRows(i, height) * b.middleCols(j, width);
    };
  });
}

}  // namespace

void add_matmul(View2<const double> a, View2<const double> b, View2<double> out, int threads) {
  using Eigen::OuterStride;
  const Map<const Matrix<Eigen::RowMajor>> left(a.data, a.rows, a.cols,
                                                OuterStride<>(a.row_stride));
  const Map<Matrix<Eigen::RowMajor>> result(out.data, out.rows, out.cols,
                                            OuterStride<>(out.row_stride));
  if (b.col_stride == 1) {
    add(left,
        Map<const Matrix<Eigen::RowMajor>>(b.data, b.rows, b.cols, OuterStride<>(b.row_stride)),
        result, threads);
  } else {
    add(left,
        Map<const Matrix<Eigen::ColMajor>>(b.data, b.rows, b.cols, OuterStride<>(b.col_stride)),
        result, threads);
  }
}

void add_product(View2<const double> x, double factor, View2<double> sums, int threads) {
  const Map<const Matrix<Eigen::RowMajor>> all(x.data, x.rows, x.cols,
                                               Eigen::OuterStride<>(x.row_stride));
  for_each_task(Tiles(x.rows).pairs, threads, [&] {
    return [&, product = Matrix<Eigen::RowMajor>()](index_t pair) mutable {
      const auto [i0, j0] = Tiles::corner(pair);
      const index_t height = std::min(kTile, x.rows - i0), width = std::min(kTile, x.rows - j0);
      product.noalias() = all.middleRows(i0, height) * all.middleRows(j0, width).transpose();
      for (index_t i = i0; i < i0 + height; ++i) {
        for (index_t j = j0; j < std::min(j0 + width, i + 1); ++j) {
          sums(j, i) = sums(i, j) += factor * product(i - i0, j - j0);
        }
      }
    };
  });
}

}  // namespace rlvar
