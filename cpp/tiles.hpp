// The lower half of a (T, T) matrix in tiles, and sums of products over it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

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
  struct Unmap {
    std::size_t bytes;
    void operator()(double* p) const { munmap(p, bytes); }
  };
  index_t rows_, accumulators_;
  std::unique_ptr<double, Unmap> data_;  // (accumulators, pairs of tiles, kTile, kTile)

 public:
  static constexpr index_t size = kTile * kTile;  // of a tile
  const Tiles tiles;

  /// As many accumulators as keep threads busy, if there are panels for them and memory.
  TileSums(index_t rows, index_t panels)
      : rows_(rows), accumulators_(accumulators_for(rows, 1, panels / 4)), tiles(rows) {
    // Pages of zeros, which the system hands out as they are first touched, by the thread that
    // does.
    const auto bytes =
        sizeof(double) * static_cast<std::size_t>(accumulators_ * tiles.pairs * size);
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = {static_cast<double*>(data), {bytes}};
  }
  index_t accumulators() const { return accumulators_; }
  double* tile(index_t accumulator, index_t pair) {
    return data_.get() + (accumulator * tiles.pairs + pair) * size;
  }

  /// out = the accumulators' sum / divisor, both halves of it. Gives the memory of each tile back
  /// as it is stored: `out` gets its own meanwhile.
  void store(View2<double> out, double divisor, int threads) {
    constexpr index_t edge = 8;  // squares of as many cache lines
    const bool whole_pages = size * 8 % sysconf(_SC_PAGESIZE) == 0;
    for_each_task(tiles.pairs, threads, [&] {
      return [&](index_t pair) {
        const auto [i0, j0] = Tiles::corner(pair);
        double* sums = tile(0, pair);
        for (index_t accumulator = 1; accumulator < accumulators_; ++accumulator) {
          const double* other = tile(accumulator, pair);
          for (index_t k = 0; k < size; ++k) sums[k] += other[k];
        }
        for (index_t i = i0; i < std::min(i0 + kTile, rows_); i += edge) {
          const index_t height = std::min(edge, rows_ - i);
          for (index_t j = j0; j < std::min(j0 + kTile, i + edge); j += edge) {
            const double* from = sums + (i - i0) * kTile + j - j0;
            double square[edge][edge];
            for (index_t r = 0; r < edge; ++r) {
              for (index_t c = 0; c < edge; ++c) square[r][c] = from[r * kTile + c] / divisor;
            }
            for (index_t r = 0; r < height; ++r) {
              const index_t width = std::min(edge, i + r - j + 1);
              std::copy_n(square[r], width, &out(i + r, j));
            }
            for (index_t c = 0; c < edge && j + c < rows_; ++c) {
              double* to = &out(j + c, i);
              for (index_t r = std::max<index_t>(j + c - i, 0); r < height; ++r)
                to[r] = square[r][c];
            }
          }
        }
        if (whole_pages) madvise(sums, size * sizeof(double), MADV_DONTNEED);
      };
    });
  }
};

/// Multiplies items, each packed into `each` panels, a batch of them at a time: all threads pack
/// the batch, then all multiply it, a task a tile. Accumulators take the items in turn.
///
/// height(i): the rows of item i, which fall with i. prepare(first, last): before items are packed.
/// pack(i, g, data): row group g of item i. make_multiply()(i, data, pair, accumulator): one tile.
template <class P, class Height, class Prepare, class Pack, class MakeMultiply>
void multiply_in_batches(index_t rows, index_t items, index_t each, index_t accumulators,
                         int threads, Height&& height, Prepare&& prepare, Pack&& pack,
                         MakeMultiply&& make_multiply) {
  const index_t size = each * Panel<P>::size(rows), bytes = size * static_cast<index_t>(sizeof(P));
  const index_t wanted = std::min(items, std::max(accumulators, kBatchBytes / bytes));
  const index_t batch = ceil_div(wanted, accumulators) * accumulators;
  const index_t packs = ceil_div(Panel<P>::groups(rows), kPackGroups);
  std::vector<CacheLine> memory(static_cast<std::size_t>(ceil_div(batch * bytes, 64)));
  const auto data = [&](index_t i) {
    return reinterpret_cast<P*>(memory.data()) + i % batch * size;
  };
  for (index_t first = 0; first < items; first += batch) {
    const index_t last = std::min(first + batch, items);
    prepare(first, last);
    for_each_task((last - first) * packs, threads, [&] {
      return [&](index_t task) {
        const index_t i = first + task / packs, g0 = task % packs * kPackGroups;
        const index_t g1 = std::min(g0 + kPackGroups, Panel<P>::groups(height(i)));
        for (index_t g = g0; g < g1; ++g) pack(i, g, data(i));
      };
    });
    for_each_task(Tiles(rows).pairs * accumulators, threads, [&] {
      return [&, multiply = make_multiply()](index_t task) mutable {
        const index_t pair = task / accumulators, accumulator = task % accumulators;
        const index_t i0 = Tiles::corner(pair).first;
        for (index_t i = first + accumulator; i < last && i0 < height(i); i += accumulators) {
          multiply(i, data(i), pair, accumulator);
        }
      };
    });
  }
}

}  // namespace rlvar
