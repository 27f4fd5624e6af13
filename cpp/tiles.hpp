// The lower half of a (T, T) matrix in tiles, and sums of products over it.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "parallel.hpp"
#include "products.hpp"

namespace rlvar {

constexpr index_t kAccumulatorBytes = 16 * kMiB;  // accumulators beside the result
constexpr index_t kTasks = 32;  // tiles times accumulators: enough to keep the threads busy

/// The tiles of the lower half, counted row by row.
struct Tiles {
  index_t count, pairs;

  explicit Tiles(index_t rows) : count(ceil_div(rows, kTile)), pairs(count * (count + 1) / 2) {}
  /// First row and first column of a tile.
  static std::pair<index_t, index_t> corner(index_t pair) {
    index_t i = static_cast<index_t>((std::sqrt(8.0 * static_cast<double>(pair) + 1.0) - 1.0) / 2);
    while (i * (i + 1) / 2 > pair) --i;
    while ((i + 1) * (i + 2) / 2 <= pair) ++i;
    return {i * kTile, (pair - i * (i + 1) / 2) * kTile};
  }
};

/// Accumulators of `results` matrices each, so that there are tasks for many threads also where
/// there are few tiles: no more than `most`, or than memory allows.
inline index_t accumulators_for(index_t rows, index_t results, index_t most) {
  const index_t fitting = kAccumulatorBytes / (results * rows * rows * 8);
  return std::clamp<index_t>(std::min({kTasks / Tiles(rows).pairs, most, fitting}), 1, 16);
}

/// Accumulators of the lower half of a matrix, tile by tile: rows of a whole matrix would share few
/// sets of the cache. Several accumulators take panels in turn.
class TileSums {
  struct Free {
    void operator()(double* p) const { std::free(p); }
  };
  index_t rows_, accumulators_;
  std::unique_ptr<double, Free> data_;  // (accumulators, pairs of tiles, kTile, kTile)

 public:
  static constexpr index_t size = kTile * kTile;  // of a tile
  const Tiles tiles;

  /// As many accumulators as keep threads busy, if there are panels for them and memory.
  TileSums(index_t rows, index_t panels)
      : rows_(rows), accumulators_(accumulators_for(rows, 1, panels / 4)), tiles(rows) {
    // Zeros that the system hands out as they are first touched, by the thread that does.
    const auto count = static_cast<std::size_t>(accumulators_ * tiles.pairs * size);
    data_.reset(static_cast<double*>(std::calloc(count, sizeof(double))));
    if (!data_) throw std::bad_alloc();
  }
  index_t accumulators() const { return accumulators_; }
  double* tile(index_t accumulator, index_t pair) {
    return data_.get() + (accumulator * tiles.pairs + pair) * size;
  }

  /// out = (out, if `add`, + the accumulators' sums) / divisor, both halves of it.
  void store(View2<double> out, bool add, double divisor, int threads) {
    constexpr index_t edge = 8;  // squares of as many cache lines
    for_each_task(tiles.pairs, threads, [&] {
      return [&](index_t pair) {
        const auto [i0, j0] = Tiles::corner(pair);
        double* sums = tile(0, pair);
        for (index_t accumulator = 1; accumulator < accumulators_; ++accumulator) {
          const double* other = tile(accumulator, pair);
          for (index_t k = 0; k < size; ++k) sums[k] += other[k];
        }
        for (index_t i = i0; i < std::min(i0 + kTile, rows_); i += edge) {
          for (index_t j = j0; j < std::min(j0 + kTile, i + edge); j += edge) {
            const double* from = sums + (i - i0) * kTile + j - j0;
            const index_t below = rows_ - i, right = rows_ - j;
            double square[edge][edge];
            for (index_t r = 0; r < edge; ++r) {
              for (index_t c = 0; c < edge; ++c) square[r][c] = from[r * kTile + c];
            }
            const auto part = out.from(i, j);
            for (index_t r = 0; add && r < std::min(edge, below); ++r) {
              for (index_t c = 0; c < std::min({edge, right, i + r - j + 1}); ++c) {
                square[r][c] += part(r, c);
              }
            }
            for (index_t r = 0; r < edge; ++r) {
              for (index_t c = 0; c < edge; ++c) square[r][c] /= divisor;
            }
            if (i > j && below >= edge) {
              for (index_t r = 0; r < edge; ++r) {
                for (index_t c = 0; c < edge; ++c) (&part(r, 0))[c] = square[r][c];
              }
              const auto mirror = out.from(j, i);
              for (index_t c = 0; c < edge; ++c) {
                for (index_t r = 0; r < edge; ++r) (&mirror(c, 0))[r] = square[r][c];
              }
            } else {  // the diagonal, or the end of the matrix
              for (index_t r = 0; r < std::min(edge, below); ++r) {
                for (index_t c = 0; c < std::min({edge, right, i + r - j + 1}); ++c) {
                  part(r, c) = out(j + c, i + r) = square[r][c];
                }
              }
            }
          }
        }
      };
    });
  }
};

}  // namespace rlvar
