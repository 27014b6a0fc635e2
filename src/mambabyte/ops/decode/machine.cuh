// What the decoding kernels ask of the hardware (compute capability 9.0): matrix fragments, asynchronous copies with
// their barriers, and mail between blocks. The only inline PTX of this folder.
#pragma once

typedef unsigned long long u64;

// d += a b: 16 columns by 8 outputs over 16 inputs, laid out as PTX's mma.m16n8k16. Row i of d depends on row i of a
// alone.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if IO == 0
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#endif
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Four matrices of 8 rows of 8 16-bit values in shared memory: lane l tells where row l % 8 of matrix l / 8 lies, and
// gets of each matrix what `mma` wants of it, values 2 (l % 4) and the next of row l / 4.
__device__ __forceinline__ uint4 load_matrices(const void* row) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(shared_address(row))
                 : "memory");
    return v;
}

__device__ __forceinline__ void barrier_init(u64* barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copying hardware.
__device__ __forceinline__ void barrier_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival, which also announces so many bytes.
__device__ __forceinline__ void barrier_expect(u64* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Until the barrier's phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(u64* barrier, unsigned parity) {
    unsigned done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
}
// Copies `bytes`, a multiple of 16, from global to shared memory and reports them to the barrier.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, unsigned bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
// Copies BYTES (4, 8 or 16) from global to shared memory, or zeros where it is not valid; later, for this thread only.
template <int BYTES>
__device__ __forceinline__ void copy_later(void* shared, const void* global, bool valid = true) {
    int read = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(BYTES), "r"(read)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(BYTES), "r"(read)
                     : "memory");
}
// Those that this thread asked for since the last group are one.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all groups of this thread but the last OPEN have arrived.
template <int OPEN>
__device__ __forceinline__ void await_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}
// One instruction: the compiler takes a store of four floats apart where it cannot order them among their neighbours.
__device__ __forceinline__ void store_four(float* to, float4 v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}
__device__ __forceinline__ void block_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Mail between blocks: 4 bytes and the tag that says which they are, written and read as one.
__device__ __forceinline__ void put(u64* place, unsigned data, unsigned tag) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(place), "l"((u64)tag << 32 | data) : "memory");
}
// Two neighbours, on 16 bytes.
__device__ __forceinline__ void get(const u64* place, u64& first, u64& second) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(first), "=l"(second) : "l"(place) : "memory");
}
__device__ __forceinline__ void look_again() {}
