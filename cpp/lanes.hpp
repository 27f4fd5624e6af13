// Small vectors of the machine's width, in the vector types of GCC and Clang.
//
// One source for every instruction set: 32 bytes where the module is built for AVX, 16 elsewhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "views.hpp"

namespace rlvar {

#ifdef __AVX__
constexpr index_t kVectorBytes = 32;
#else
constexpr index_t kVectorBytes = 16;
#endif

/// Vector types for element type T: `Vec` of numbers, `Mask` of all-ones or all-zeros integers.
template <class T>
struct Lanes {
  static constexpr index_t width = kVectorBytes / static_cast<index_t>(sizeof(T));
  using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  // Aliases T alone (memcpy would alias everything, and have the compiler reload it all).
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(4)));
  typedef Int Mask __attribute__((vector_size(kVectorBytes)));

  static Vec fill(T x) { return x - Vec{}; }

  /// p[0] .. p[width - 1].
  static Vec load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  /// p[0], p[stride], ... in the first `count` lanes, 0 in the others.
  template <class U>
  static Vec gather(const U* p, index_t stride, index_t count) {
    Vec v{};
    for (index_t i = 0; i < count; ++i) v[i] = static_cast<T>(p[i * stride]);
    return v;
  }
  static void store(Vec v, T* p) { *reinterpret_cast<Unaligned*>(p) = v; }

  /// All ones where a byte is not 0, zeros elsewhere.
  static Mask load(const std::uint8_t* p) {
#ifdef __AVX2__
    if constexpr (width == 8) return (Mask)_mm256_cvtepu8_epi32(_mm_loadu_si64(p)) > 0;
    if constexpr (width == 4) return (Mask)_mm256_cvtepu8_epi64(_mm_loadu_si32(p)) > 0;
#endif
    return gather(p, 1, width);
  }
  static Mask gather(const std::uint8_t* p, index_t stride, index_t count) {
    Mask m{};
    for (index_t i = 0; i < count; ++i) m[i] = p[i * stride];
    return m != 0;
  }

  /// a where the mask is all ones, 0 where it is zeros.
  static Vec keep(Mask m, Vec a) { return (Vec)((Mask)a & m); }
  /// a where the mask is all ones, b where it is zeros (m ? a : b would compare m with 0 first).
  static Vec select(Mask m, Vec a, Vec b) {
#ifdef __AVX__
    if constexpr (sizeof(T) == 8) return _mm256_blendv_pd(b, a, (__m256d)m);
    if constexpr (sizeof(T) == 4) return _mm256_blendv_ps(b, a, (__m256)m);
#endif
    return (Vec)(((Mask)a & m) | ((Mask)b & ~m));
  }

  /// How many lanes of the mask are all ones.
  static int count(Mask m) {
#ifdef __AVX__
    if constexpr (width == 8) return __builtin_popcount(_mm256_movemask_ps((__m256)m));
#endif
    Int ones = 0;
    for (index_t i = 0; i < width; ++i) ones -= m[i];
    return static_cast<int>(ones);
  }

  /// The larger of a and |b| in each lane; a where b is NaN.
  static Vec larger(Vec a, Vec b) {
    const Vec magnitude = (Vec)((Mask)b & std::numeric_limits<Int>::max());
    return select(magnitude > a, magnitude, a);
  }

  /// Lane i gets lane i + 1, the last one the first of `beyond`.
  static Vec shift(Vec v, Vec beyond) {
    return shuffle([](int i) { return i + 1; }, v, beyond, All{});
  }
  /// Lane i gets lane i + K of its 16 bytes, a lane of `beyond` where that is past their end.
  template <int K>
  static Vec shift_in_half(Vec v, Vec beyond) {
    constexpr auto from = [](int i) {
      return i % half + K < half ? i + K : static_cast<int>(width) + i + K - half;
    };
    return shuffle(from, v, beyond, All{});
  }
  /// The first 16 bytes get the first lane of the second, the second 16 bytes that of `beyond`.
  static Vec spread_upper(Vec v, Vec beyond) {
    return shuffle([](int i) { return i < half ? half : static_cast<int>(width); }, v, beyond,
                   All{});
  }
  static constexpr int half = 16 / static_cast<int>(sizeof(T));  // lanes in 16 bytes

  /// Rows become columns: lane j of v[i] changes places with lane i of v[j].
  ///
  /// Blocks of half the lanes change places across the diagonal, then blocks of a quarter, ...
  static void transpose(Vec (&v)[kVectorBytes / sizeof(T)]) {
    if constexpr (width == 8) swap_blocks<4>(v);
    if constexpr (width >= 4) swap_blocks<2>(v);
    swap_blocks<1>(v);
  }

 private:
  template <int Size>
  static void swap_blocks(Vec (&v)[kVectorBytes / sizeof(T)]) {
    constexpr int lanes = static_cast<int>(width);
#pragma GCC unroll 8
    for (int i = 0; i < lanes; ++i) {
      if (i & Size) continue;
      const Vec a = v[i], b = v[i + Size];
      v[i] = shuffle([](int l) { return l & Size ? lanes + l - Size : l; }, a, b, All{});
      v[i + Size] = shuffle([](int l) { return l & Size ? lanes + l : l + Size; }, a, b, All{});
    }
  }

  using All = std::make_integer_sequence<int, static_cast<int>(width)>;

  template <class From, int... I>
  static Vec shuffle(From from, Vec v, Vec beyond, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(v, beyond, (From{from}(I))...);
#else
    return __builtin_shuffle(v, beyond, Mask{from(I)...});
#endif
  }
};

/// Half a vector of float32, and the same numbers as a vector of float64. (GCC makes several
/// instructions of the generic forms where there is one.)
typedef float HalfVec __attribute__((vector_size(kVectorBytes / 2)));
#ifdef __AVX__
inline HalfVec lower_half(Lanes<float>::Vec v) { return _mm256_castps256_ps128(v); }
inline HalfVec upper_half(Lanes<float>::Vec v) { return _mm256_extractf128_ps(v, 1); }
inline Lanes<double>::Vec to_doubles(HalfVec v) { return _mm256_cvtps_pd(v); }
#else
inline HalfVec lower_half(Lanes<float>::Vec v) { return HalfVec{v[0], v[1]}; }
inline HalfVec upper_half(Lanes<float>::Vec v) { return HalfVec{v[2], v[3]}; }
inline Lanes<double>::Vec to_doubles(HalfVec v) {
  return __builtin_convertvector(v, Lanes<double>::Vec);
}
#endif

/// p[0], p[1], ... as float64.
inline Lanes<double>::Vec load_doubles(const double* p) { return Lanes<double>::load(p); }
inline Lanes<double>::Vec load_doubles(const float* p) {
  typedef float Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(4)));
  return to_doubles(*reinterpret_cast<const Unaligned*>(p));
}

/// Rounds v to what p points at, and stores it. Returns what it stored.
template <class T>
typename Lanes<T>::Vec store_rounded(typename Lanes<T>::Vec v, T* p) {
  Lanes<T>::store(v, p);
  return v;
}
inline HalfVec store_rounded(Lanes<double>::Vec v, float* p) {
  typedef float Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(4)));
  return *reinterpret_cast<Unaligned*>(p) = __builtin_convertvector(v, HalfVec);
}

/// Sum and maximum of the lanes.
inline double sum_of(Lanes<double>::Vec v) {
  double total = v[0];
  for (index_t l = 1; l < Lanes<double>::width; ++l) total += v[l];
  return total;
}
inline double max_of(Lanes<double>::Vec v) {
  double result = v[0];
  for (index_t l = 1; l < Lanes<double>::width; ++l) result = std::max(result, v[l]);
  return result;
}

inline double squared_norm(const double* x, index_t width) {
  double total = 0.0;
  for (index_t d = 0; d < width; ++d) total += x[d] * x[d];
  return total;
}

}  // namespace rlvar
