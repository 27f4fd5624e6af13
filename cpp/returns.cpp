// Bytes: each input is read once and each output written once. Arithmetic: step by step, a row is a
// chain of multiply-adds, each waiting 4 cycles for the one before; memory could deliver a step in
// less than one. So W steps of a row, a vector, are scanned at once: log2(W) rounds of
//   a += c * (a further on),  c *= (c further on)
// turn their recurrences into x = a + c * carry. A block of W steps that are all live, with none
// terminated or truncated, has one constant c, and its powers are known beforehand.
//
// What is carried from block to block is float64, and so are its factors: rounded to float32, they
// would be wrong by more at each step. Blocks of float32 arrays are float32 where their factors are
// powers of one c. Else, and where each step carries (the layout below), float64.
//
// Where rows, not steps, are contiguous ((T, N) arrays), the lanes are W rows instead, each step is
// one vector recurrence, and many vectors of rows hide each other's waiting.
#include "returns.hpp"

#include <cmath>

#include "lanes.hpp"
#include "parallel.hpp"

namespace rlvar {

namespace {

// Below this many rewards for each thread, starting threads costs more than the scan.
constexpr index_t kRewardsPerThread = 1 << 17;
constexpr index_t kRowsPerTask = 8;      // where lanes are steps
constexpr index_t kVectorsPerTask = 16;  // where lanes are rows

/// Which of the arrays that make a step unlike the others are there. Known to the compiler, what is
/// not there costs nothing.
enum class Flags { kNone, kMask, kAny };

/// What the W elements of a block follow one another along.
enum class Along { kSteps, kRows };

/// Scans arrays of T in arithmetic of C, T or double.
template <class T, class C, Kind kind>
struct Scan {
  using L = Lanes<C>;
  using Vec = typename L::Vec;
  using Stored = std::conditional_t<sizeof(T) == sizeof(C), Vec, HalfVec>;  // W numbers of an array
  using Mask = typename L::Mask;
  static constexpr index_t W = L::width;
  static constexpr bool exact = sizeof(C) == 8;

  const Trajectories<T>& in;
  const View2<T> first, second;  // outputs
  const Flags flags;
  const bool unit = contiguous_along(Along::kSteps);
  const bool over_rows = !unit && contiguous_along(Along::kRows);
  const C gamma, lambda, rest;  // rest: 1 - lambda
  double decays[W + 1];         // c^0 .. c^W, with c = gamma (kReturns) or gamma lambda (kGae)
  Vec powers{};                 // c^W .. c^1
  Vec half_powers{};            // c^(W/2) .. c^1 and zeros

  Scan(const Trajectories<T>& trajectories, View2<T> first_out, View2<T> second_out)
      : in(trajectories),
        first(first_out),
        second(second_out),
        flags(in.terminated.data || in.truncated.data || in.gammas.data ? Flags::kAny
              : in.steps.mask.data                                      ? Flags::kMask
                                                                        : Flags::kNone),
        gamma(static_cast<C>(in.gamma)),
        lambda(static_cast<C>(in.lambda)),
        rest(static_cast<C>(1.0 - in.lambda)) {
    const double c = kind == Kind::kGae ? in.gamma * in.lambda : in.gamma;
    for (index_t i = 0; i <= W; ++i) decays[i] = std::pow(c, i);
    for (index_t i = 0; i < W; ++i) powers[i] = static_cast<C>(decays[W - i]);
    for (index_t i = 0; i < W / 2; ++i) half_powers[i] = powers[i + W / 2];
  }

  // ---- Blocks in memory. `full`: W elements, contiguous; otherwise `count` at a stride. ----

  /// One row (its steps follow) or one step (its rows follow) of an array; null if absent.
  template <class U>
  struct Line {
    U* data;
    index_t stride;
  };
  template <Along along, class U>
  static Line<U> line(const View2<U>& v, index_t i) {
    if (!v.data) return {nullptr, 0};
    if constexpr (along == Along::kSteps) return {v.data + i * v.row_stride, v.col_stride};
    return {v.data + i * v.col_stride, v.row_stride};
  }
  struct Lines {
    Line<const T> rewards, values, next_values;
    Line<const double> gammas;
    Line<const std::uint8_t> mask, terminated, truncated;
    Line<T> first, second;
  };
  /// The lines of row i (along steps) or of step i (along rows).
  template <Along along, Flags flags>
  [[gnu::always_inline]] Lines lines(index_t i) const {
    Lines l{};
    l.rewards = line<along>(in.rewards, i);
    l.first = line<along>(first, i);
    if constexpr (kind != Kind::kReturns) {
      l.values = line<along>(in.values, i);
      l.second = line<along>(second, i);
    }
    if constexpr (flags != Flags::kNone) l.mask = line<along>(in.steps.mask, i);
    if constexpr (flags == Flags::kAny) {
      l.gammas = line<along>(in.gammas, i);
      l.terminated = line<along>(in.terminated, i);
      l.truncated = line<along>(in.truncated, i);
      l.next_values = line<along>(in.next_values, i);
    }
    return l;
  }

  template <bool full, class U>
  static auto load(const Line<const U>& l, index_t i, index_t count) {
    if constexpr (!full)
      return L::gather(l.data + i * l.stride, l.stride, count);
    else if constexpr (std::is_same_v<U, std::uint8_t> || std::is_same_v<U, C>)
      return L::load(l.data + i);
    else
      return load_doubles(l.data + i);
  }
  /// Rounds x to what the array holds. Returns 0 in each lane, or NaN where that is not finite.
  template <bool full>
  static Stored store(Vec x, const Line<T>& l, index_t i, index_t count) {
    if constexpr (full) return store_rounded(x, l.data + i) * T(0);
    const auto rounded = __builtin_convertvector(x, Stored);
    for (index_t k = 0; k < count; ++k) l.data[(i + k) * l.stride] = rounded[k];
    return rounded * T(0);
  }
  static Mask first_lanes(index_t count) {
    Mask m;
    for (index_t i = 0; i < W; ++i) m[i] = i < count ? -1 : 0;
    return m;
  }

  // ---- The recurrence of a block. `quiet`: all its steps are live and go on. ----

  struct Block {
    Vec a, c;      // x = a + c * next, with next the x of the next live step
    Vec delta, g;  // delta + g * next is the advantage (kGae)
    Vec value;
  };

  template <bool full, bool quiet>
  [[gnu::always_inline]] Block recurrence(const Lines& at, index_t i, index_t count,
                                          Mask live) const {
    const auto get = [&](const auto& l) { return load<full>(l, i, count); };
    const Vec reward = get(at.rewards);
    Block b{};
    b.g = L::fill(gamma);
    if constexpr (!quiet && exact) {
      if (at.gammas.data) b.g = get(at.gammas);
    }
    // What comes after a step that stops: the value beyond it where truncated, nothing where
    // terminated. It counts at once, and the trace ends.
    Mask stops{};
    Vec beyond{};
    if (!quiet && at.truncated.data) {
      stops = get(at.truncated);
      beyond = L::keep(stops, get(at.next_values));
    }
    if (!quiet && at.terminated.data) {
      const Mask terminated = get(at.terminated);
      beyond = L::keep(~terminated, beyond);
      stops |= terminated;
    }
    if constexpr (kind == Kind::kReturns) {
      b.a = reward;
      b.c = b.g;
    } else {
      b.value = get(at.values);
      b.delta = reward - b.value;
    }
    if constexpr (kind == Kind::kGae) {
      b.a = lambda * reward + rest * b.value;
      b.c = exact ? lambda * b.g : L::fill(static_cast<C>(decays[1]));
    }
    if (!quiet && (at.truncated.data || at.terminated.data)) {
      b.a += b.c * beyond;
      b.delta += b.g * beyond;
      b.c = L::keep(~stops, b.c);
      b.g = L::keep(~stops, b.g);
    }
    if constexpr (!quiet) {
      b.a = L::keep(live, b.a);
      b.c = L::select(live, b.c, L::fill(C(1)));
    }
    return b;
  }

  /// Writes the outputs of a block from its x and that of each step's next live step. Returns as
  /// `store`.
  template <bool full, bool quiet>
  [[gnu::always_inline]] Stored finish(const Block& b, const Lines& at, index_t i, index_t count,
                                       Mask live, Vec x, Vec next) const {
    Vec one = x, two{};
    if constexpr (kind == Kind::kGae) {
      one = b.delta + b.g * next;
      two = one + b.value;
    }
    if constexpr (!quiet) {
      one = L::keep(live, one);
      two = L::keep(live, two);
    }
    auto watch = store<full>(one, at.first, i, count);
    if constexpr (kind != Kind::kReturns) watch += store<full>(two, at.second, i, count);
    return watch;
  }

  // ---- Lanes are steps of one row. ----

  /// Solves x[i] = a[i] + c[i] x[i+1] within a block, for x = a + c * (x after the block): over 1
  /// and 2 lanes in each 16 bytes, then across the two (Hillis & Steele 1986).
  static void solve(Vec& a, Vec& c) {
    const Vec zero{}, one = L::fill(C(1));
    a += c * L::template shift_in_half<1>(a, zero);
    c *= L::template shift_in_half<1>(c, one);
    if constexpr (L::half > 2) {
      a += c * L::template shift_in_half<2>(a, zero);
      c *= L::template shift_in_half<2>(c, one);
    }
    if constexpr (W > L::half) {
      a += c * L::spread_upper(a, zero);
      c *= L::spread_upper(c, one);
    }
  }
  /// The same with the constant c whose powers are known.
  void solve_constant(Vec& a) const {
    const Vec zero{};
    a += powers[W - 1] * L::template shift_in_half<1>(a, zero);
    if constexpr (L::half > 2) a += powers[W - 2] * L::template shift_in_half<2>(a, zero);
    if constexpr (W > L::half) a += half_powers * L::spread_upper(a, zero);
  }

  /// What passes from a block to the one before it.
  struct Carry {
    double x;      // of the next live step
    Stored watch;  // 0, or NaN if an output was not finite
  };

  /// Scans steps [t, t + count) of a row.
  template <bool full, bool quiet>
  [[gnu::always_inline]] void block(const Lines& at, index_t t, index_t count, Carry& carry) const {
    Mask live{};
    if constexpr (!quiet) {
      live = full ? ~Mask{} : first_lanes(count);
      if (at.mask.data) live &= load<full>(at.mask, t, count);
    }
    Block b = recurrence<full, quiet>(at, t, count, live);
    double c;  // of the whole block
    if constexpr (quiet) {
      solve_constant(b.a);
      b.c = powers;
      c = decays[W];
    } else {
      solve(b.a, b.c);
      c = exact ? static_cast<double>(b.c[0]) : b.c[0] == 0 ? 0.0 : decays[L::count(live)];
    }
    const Vec after = L::fill(static_cast<C>(carry.x)), x = b.a + b.c * after;
    carry.watch += finish<full, quiet>(b, at, t, count, live, x, L::shift(x, after));
    carry.x = b.a[0] + c * carry.x;
  }

  /// Whether the W steps from t are all live and go on (flags contiguous in time).
  static bool is_quiet(const Lines& at, index_t t) {
    constexpr std::uint8_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const auto bits = [](const std::uint8_t* p) {
      std::uint64_t b = 0;
      std::memcpy(&b, p, W);
      return b;
    };
    std::uint64_t unusual = 0;
    if (at.mask.data) unusual |= bits(at.mask.data + t) ^ bits(ones);
    if (at.terminated.data) unusual |= bits(at.terminated.data + t);
    if (at.truncated.data) unusual |= bits(at.truncated.data + t);
    return unusual == 0 && !at.gammas.data;
  }

  static bool is_zero(const Stored& v) {
    bool zero = true;
    for (index_t i = 0; i < W; ++i) zero = zero && v[i] == T(0);
    return zero;
  }

  /// Scans row n. Returns whether its outputs are finite, and so what it read.
  template <bool unit, Flags flags>
  bool row(index_t n) const {
    const index_t steps = in.rewards.cols, end = in.steps.end(n, steps);
    for (index_t t = end; t < steps; ++t) {
      first(n, t) = T(0);
      if constexpr (kind != Kind::kReturns) second(n, t) = T(0);
    }
    Carry carry{in.bootstrap_of(n), Stored{}};
    const Lines at = lines<Along::kSteps, flags>(n);
    index_t t = end - end % W;
    if (t < end) partial_block(at, t, end - t, carry);
    while (t > 0) {
      t -= W;
      if (!unit)
        partial_block(at, t, W, carry);
      else if (flags == Flags::kNone || is_quiet(at, t))
        block<true, true>(at, t, W, carry);
      else
        block<true, false>(at, t, W, carry);
    }
    return is_zero(carry.watch);
  }
  bool any_row(index_t n) const {
    if (!unit) return row<false, Flags::kAny>(n);
    if (flags == Flags::kAny) return row<true, Flags::kAny>(n);
    return flags == Flags::kMask ? row<true, Flags::kMask>(n) : row<true, Flags::kNone>(n);
  }
  [[gnu::noinline]] void partial_block(const Lines& at, index_t t, index_t count,
                                       Carry& carry) const {
    Carry local = carry;
    const Lines lines_here = at;
    block<false, false>(lines_here, t, count, local);
    carry = local;
  }

  // ---- Lanes are rows. ----

  /// Scans rows [n, n + count), count <= W * kVectorsPerTask. Returns as `row`.
  template <bool full, bool quiet>
  bool rows(index_t n, index_t count) const {
    const index_t steps = in.rewards.cols, vectors = ceil_div(count, W);
    Vec x[kVectorsPerTask] = {};
    Stored watch{};
    Mask end[kVectorsPerTask] = {};
    for (index_t i = 0; i < count; ++i) {
      end[i / W][i % W] = static_cast<typename L::Int>(in.steps.end(n + i, steps));
      x[i / W][i % W] = static_cast<C>(in.bootstrap_of(n + i));
    }
    for (index_t t = steps - 1; t >= 0; --t) {
      const Lines at = lines<Along::kRows, quiet ? Flags::kNone : Flags::kAny>(t);
      for (index_t v = 0; v < vectors; ++v) {
        const index_t row = n + v * W, lanes = std::min(W, n + count - row);
        Mask live{};
        if constexpr (!quiet) {
          live = end[v] > static_cast<typename L::Int>(t);
          if (at.mask.data) live &= load<full>(at.mask, row, lanes);
        }
        const Block b = recurrence<full, quiet>(at, row, lanes, live);
        const Vec next = x[v];
        x[v] = b.a + b.c * next;
        watch += finish<full, quiet>(b, at, row, lanes, live, x[v], next);
      }
    }
    return is_zero(watch);
  }

  bool any_rows(index_t n, index_t count) const {
    if (count % W) return rows<false, false>(n, count);
    return flags != Flags::kNone || in.steps.ragged() ? rows<true, false>(n, count)
                                                      : rows<true, true>(n, count);
  }

  /// Whether every array present has unit stride along `along`.
  bool contiguous_along(Along along) const {
    const auto is_unit = [&](const auto& v) {
      return !v.data || (along == Along::kSteps ? v.col_stride : v.row_stride) == 1;
    };
    return is_unit(in.rewards) && is_unit(in.values) && is_unit(in.next_values) &&
           is_unit(in.gammas) && is_unit(in.terminated) && is_unit(in.truncated) &&
           is_unit(in.steps.mask) && is_unit(first) && is_unit(second);
  }

  /// Whether C has the digits (see above), and c^W, where it is not 0, all of them.
  bool precise() const {
    return !over_rows && !in.gammas.data && (decays[1] == 0.0 || decays[1] > 1e-3);
  }

  bool run(int threads) const {
    const index_t n = in.rewards.rows, paying = n * in.rewards.cols / kRewardsPerThread;
    const index_t each = over_rows ? W * kVectorsPerTask : kRowsPerTask;
    threads = static_cast<int>(std::min<index_t>(threads, std::max<index_t>(paying, 1)));
    std::atomic<bool> finite{true};
    const index_t tasks = ceil_div(n, each);
    for_each_task(tasks, threads, [&] {
      return [&](index_t task) {
        // From the last row to the first, as from the last step to the first: one stream downwards.
        const index_t begin = (tasks - 1 - task) * each, end = std::min(begin + each, n);
        bool good = true;
        if (exact && over_rows) {
          const index_t whole = (end - begin) / W * W;
          if (whole) good = any_rows(begin, whole);
          if (begin + whole < end) good = any_rows(begin + whole, end - begin - whole) && good;
        } else {
          for (index_t i = end - 1; i >= begin; --i) good = any_row(i) && good;
        }
        if (!good) finite = false;
      };
    });
    return finite;
  }
};

}  // namespace

template <Kind kind, class T>
bool scan(const Trajectories<T>& in, View2<T> first, View2<T> second, int threads) {
  const Scan<T, T, kind> narrow(in, first, second);
  if (narrow.precise()) return narrow.run(threads);
  return Scan<T, double, kind>(in, first, second).run(threads);
}

#define RLVAR_INSTANTIATE(kind)                                                          \
  template bool scan<kind>(const Trajectories<float>&, View2<float>, View2<float>, int); \
  template bool scan<kind>(const Trajectories<double>&, View2<double>, View2<double>, int);
RLVAR_INSTANTIATE(Kind::kReturns)
RLVAR_INSTANTIATE(Kind::kGae)
#undef RLVAR_INSTANTIATE

}  // namespace rlvar
