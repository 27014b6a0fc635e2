// CUDA C++ as this package's kernels write it, for a host compiler. The kernels' own macros (D, E, N, ...) are expanded
// before, so that nothing here or in the standard headers meets them.
#pragma once
#include "scheduler.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define EMULATED inline __attribute__((always_inline))

#define threadIdx (emulated::here->thread)
#define blockIdx (emulated::here->block)
#define blockDim (emulated::here->block_size)
#define gridDim (emulated::here->grid_size)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
EMULATED float2 make_float2(float x, float y) { return {x, y}; }
EMULATED float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
EMULATED int2 make_int2(int x, int y) { return {x, y}; }
EMULATED int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
EMULATED uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
EMULATED uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulated {
template <class To, class From>
EMULATED To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits as another type");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulated
EMULATED float __int_as_float(int v) { return emulated::bits<float>(v); }
EMULATED float __uint_as_float(unsigned v) { return emulated::bits<float>(v); }
EMULATED int __float_as_int(float v) { return emulated::bits<int>(v); }
EMULATED unsigned __float_as_uint(float v) { return emulated::bits<unsigned>(v); }
EMULATED float __fmul_rn(float a, float b) { return a * b; }
EMULATED float rsqrtf(float v) { return 1.f / sqrtf(v); }
using std::isinf;
template <class A, class B>
EMULATED std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B>
EMULATED std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)a < (T)b ? (T)b : (T)a;
}
EMULATED int __popc(unsigned v) { return __builtin_popcount(v); }

// Memory. Ordinary writes are seen at once by all; what is tested is the order of events, not of caches.
template <class T>
EMULATED T __ldg(const T* p) {
    return *p;
}
template <class T>
EMULATED T __ldcg(const T* p) {
    emulated::perhaps_turn();
    return *p;
}
EMULATED size_t __cvta_generic_to_shared(const void* p) {
    return (size_t)((const char*)p - emulated::here->dynamic_shared);
}
EMULATED void __threadfence() { emulated::perhaps_turn(); }
namespace emulated {
// Not to be seen by -fsanitize=thread: atomic operations do not race with each other.
template <class T, class F>
__attribute__((noinline, no_sanitize_thread)) T change(T* p, F f) {
    take_turns();
    T old = *p;
    *p = f(old);
    return old;
}
}  // namespace emulated
template <class T, class V>
EMULATED T atomicAdd(T* p, V v) {
    return emulated::change(p, [=](T old) { return (T)(old + (T)v); });
}

// Threads that meet.
namespace emulated {
template <class T>
struct Shuffle {
    T value;
    unsigned source;  // a lane, or its own
};
// Each lane's value becomes its source's; from a lane outside the mask come bytes of ones, which are NaN.
template <class T>
void shuffle_all(void** records, unsigned mask) {
    T values[32];
    memset(values, 0xff, sizeof values);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) values[lane] = ((Shuffle<T>*)records[lane])->value;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) ((Shuffle<T>*)records[lane])->value = values[((Shuffle<T>*)records[lane])->source];
}
template <class T>
EMULATED T shuffle(unsigned mask, T value, unsigned source) {
    Shuffle<T> record = {value, source};
    meet("a shuffle", false, mask, &record, shuffle_all<T>);
    return record.value;
}
EMULATED unsigned lane() { return here->thread.x % 32; }
struct Vote {
    bool yes;
    unsigned all;
};
inline void vote_all(void** records, unsigned mask) {
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && ((Vote*)records[lane])->yes) all |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) ((Vote*)records[lane])->all = all;
}
inline void nothing(void**, unsigned) {}
}  // namespace emulated
template <class T>
EMULATED T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    unsigned base = emulated::lane() & ~(width - 1u);
    return emulated::shuffle(mask, v, base + (lane & (width - 1)));
}
template <class T>
EMULATED T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
    unsigned me = emulated::lane(), source = me ^ (unsigned)lanes;
    return emulated::shuffle(mask, v, source < (me & ~(width - 1u)) + width ? source : me);
}
template <class T>
EMULATED T __shfl_down_sync(unsigned mask, T v, unsigned lanes, int width = 32) {
    unsigned me = emulated::lane();
    return emulated::shuffle(mask, v, (me & (width - 1)) + lanes < (unsigned)width ? me + lanes : me);
}
template <class T>
EMULATED T __shfl_up_sync(unsigned mask, T v, unsigned lanes, int width = 32) {
    unsigned me = emulated::lane();
    return emulated::shuffle(mask, v, (me & (width - 1)) >= lanes ? me - lanes : me);
}
EMULATED unsigned __ballot_sync(unsigned mask, bool yes) {
    emulated::Vote record = {yes, 0};
    emulated::meet("a vote", false, mask, &record, emulated::vote_all);
    return record.all;
}
EMULATED bool __any_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) != 0; }
EMULATED bool __all_sync(unsigned mask, bool yes) { return __ballot_sync(mask, yes) == mask; }
EMULATED void __syncwarp(unsigned mask = 0xffffffffu) {
    char record;
    emulated::meet("__syncwarp", true, mask, &record, emulated::nothing);
}
EMULATED void __syncthreads() { emulated::sync_block(); }

#include "ptx.h"

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));  // of this library, from the linker
extern char _end __attribute__((visibility("hidden")));
}

// How a launch reaches a kernel: its parameters' types are those of the function.
namespace emulated {
template <auto KERNEL>
struct Entry;
template <class... A, void (*KERNEL)(A...)>
struct Entry<KERNEL> {
    template <size_t... I>
    __attribute__((no_sanitize_thread)) static void call(void* const* values, std::index_sequence<I...>) {
        KERNEL(*(const A*)values[I]...);
    }
    static void body(void* const* values) { call(values, std::index_sequence_for<A...>()); }
    static const char* run(const Launch& launch) {
        static_assert(!(std::is_same_v<A, float> || ...), "Python's floats arrive as double");
        constexpr size_t sizes[] = {sizeof(A)..., 0};
        constexpr bool whole[] = {std::is_class_v<A>..., false};
        if (launch.arguments != sizeof...(A)) return "the kernel takes another number of arguments";
        for (unsigned i = 0; i < launch.arguments; i++)
            if (whole[i] ? launch.sizes[i] != sizes[i] : launch.sizes[i] < sizes[i])
                return "an argument has another size than the kernel's parameter";
        return emulated::launch(launch, {body, {&__ehdr_start, (size_t)(&_end - &__ehdr_start)}});
    }
};
}  // namespace emulated
#define EMULATED_ENTRY(kernel)                                                                          \
    extern "C" __attribute__((visibility("default"))) const char* emulated_##kernel(                    \
        const emulated::Launch* launch) {                                                               \
        return emulated::Entry<kernel>::run(*launch);                                                   \
    }
