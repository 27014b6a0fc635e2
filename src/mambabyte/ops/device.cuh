// What every CUDA kernel of this package shares: the type of the activations, four at a time, and cheap
// transcendentals.
//
// IO is defined by the host: 0 bfloat16, 1 float16, 2 float32. Nothing is included, so that NVRTC needs no header
// files.
#pragma once

typedef long long i64;
constexpr unsigned ALL = 0xffffffffu;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
#define INF __int_as_float(0x7f800000)

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float lg2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2E * x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x). Where e^x < 1/16 the series keeps the relative error at 2e-7, which log(1 + e) would lose by rounding 1
// + e.
__device__ __forceinline__ float softplus(float x) {
    float e = ex2(LOG2E * x);
    float small = e * fmaf(e, fmaf(e, fmaf(e, fmaf(e, 0.2f, -0.25f), 1.f / 3.f), -0.5f), 1.f);
    float large = LN2 * lg2(1.f + e);
    return x > 20.f ? x : e < 0.0625f ? small : large;
}
// The derivative of softplus where its value is s: 1 - e^-s, by its series where the difference would cancel.
__device__ __forceinline__ float softplus_slope(float s) {
    float small = s * fmaf(s, fmaf(s, fmaf(s, -1.f / 24.f, 1.f / 6.f), -0.5f), 1.f);
    return s < 0.0625f ? small : 1.f - ex2(-LOG2E * s);
}

#if IO == 2
typedef float io_t;
typedef float4 io4;  // four activations as they lie in memory
__device__ __forceinline__ float to_float(io_t v) { return v; }
__device__ __forceinline__ io_t from_float(float v) { return v; }
__device__ __forceinline__ float4 unpack(io4 v) { return v; }
__device__ __forceinline__ io4 pack(float4 v) { return v; }
__device__ __forceinline__ io4 io4_of(io_t a, io_t b, io_t c, io_t d) { return make_float4(a, b, c, d); }
#else
typedef unsigned short io_t;
typedef uint2 io4;
__device__ __forceinline__ io4 io4_of(io_t a, io_t b, io_t c, io_t d) {
    return make_uint2(a | (unsigned)b << 16, c | (unsigned)d << 16);
}
#if IO == 0
__device__ __forceinline__ float to_float(io_t v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ float low(unsigned v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(unsigned v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ unsigned pack2(float a, float b) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
#else
__device__ __forceinline__ float to_float(io_t v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}
__device__ __forceinline__ float low(unsigned v) { return to_float((io_t)(v & 0xffffu)); }
__device__ __forceinline__ float high(unsigned v) { return to_float((io_t)(v >> 16)); }
__device__ __forceinline__ unsigned pack2(float a, float b) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
#endif
__device__ __forceinline__ io_t from_float(float v) { return (io_t)(pack2(v, 0.f) & 0xffffu); }
__device__ __forceinline__ float4 unpack(io4 v) { return make_float4(low(v.x), high(v.x), low(v.y), high(v.y)); }
__device__ __forceinline__ io4 pack(float4 v) { return make_uint2(pack2(v.x, v.y), pack2(v.z, v.w)); }
#endif

// Four neighbours of a row, zeros from position `valid` on. WHOLE promises that a quad is whole and lies on its own
// size.
template <bool WHOLE>
__device__ __forceinline__ io4 load4(const io_t* p, int valid) {
    if constexpr (WHOLE) return valid > 0 ? __ldg((const io4*)p) : io4();
    else
        return io4_of(valid > 0 ? p[0] : io_t(), valid > 1 ? p[1] : io_t(), valid > 2 ? p[2] : io_t(),
                      valid > 3 ? p[3] : io_t());
}
// One instruction: the compiler takes a store of two halves apart where it cannot order it among its neighbours.
__device__ __forceinline__ void store_quad(io_t* p, float4 v) { *(float4*)p = v; }
__device__ __forceinline__ void store_quad(io_t* p, uint2 v) {
    *(unsigned long long*)p = (unsigned long long)v.y << 32 | v.x;
}
template <bool WHOLE>
__device__ __forceinline__ void store4(io_t* p, int valid, float4 v) {
    if constexpr (WHOLE) {
        if (valid > 0) store_quad(p, pack(v));
    } else {
        if (valid > 0) p[0] = from_float(v.x);
        if (valid > 1) p[1] = from_float(v.y);
        if (valid > 2) p[2] = from_float(v.z);
        if (valid > 3) p[3] = from_float(v.w);
    }
}
// The same for float32 tensors (states, per-channel parameters); `fill` stands where nothing lies, a null pointer is
// all fill.
__device__ __forceinline__ float4 load_floats(const float* p, int valid, float fill) {
    if (p == nullptr) valid = 0;
    return make_float4(valid > 0 ? p[0] : fill, valid > 1 ? p[1] : fill, valid > 2 ? p[2] : fill,
                       valid > 3 ? p[3] : fill);
}
__device__ __forceinline__ void store_floats(float* p, int valid, float4 v) {
    if (valid > 0) p[0] = v.x;
    if (valid > 1) p[1] = v.y;
    if (valid > 2) p[2] = v.z;
    if (valid > 3) p[3] = v.w;
}
__device__ __forceinline__ float& at(float4& v, int i) { return (&v.x)[i]; }
__device__ __forceinline__ float at(const float4& v, int i) { return (&v.x)[i]; }
