// ops/decode/machine.cuh on the emulator.
#pragma once

typedef unsigned long long u64;

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    emulated::ptx::Product record = {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
#if IO == 0
    emulated::ptx::multiply<emulated::ptx::Bf16>(record);
#else
    emulated::ptx::multiply<emulated::ptx::F16>(record);
#endif
    for (int i = 0; i < 4; i++) d[i] = record.d[i];
}
__device__ __forceinline__ void barrier_init(u64* barrier, unsigned arrivals) {
    emulated::barrier_init(barrier, arrivals);
}
__device__ __forceinline__ void barrier_fence() {}
__device__ __forceinline__ void barrier_arrive(u64* barrier) { emulated::barrier_arrive(barrier, 0); }
__device__ __forceinline__ void barrier_expect(u64* barrier, unsigned bytes) {
    emulated::barrier_arrive(barrier, bytes);
}
__device__ __forceinline__ void barrier_wait(u64* barrier, unsigned parity) { emulated::barrier_wait(barrier, parity); }
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, unsigned bytes, u64* barrier) {
    emulated::bulk_copy(shared, global, bytes, barrier);
}
__device__ __forceinline__ void block_sync(int id, int threads) { emulated::sync_named(id, threads); }
__device__ __forceinline__ void put(u64* place, unsigned data, unsigned tag) {
    emulated::send(place, (u64)tag << 32 | data);
}
__device__ __forceinline__ void get(const u64* place, u64& first, u64& second) {
    first = emulated::receive(place, 16);
    second = emulated::receive(place + 1, 8);
}
__device__ __forceinline__ void look_again() { emulated::look_again(); }
__device__ __forceinline__ void let_next_begin() {}
__device__ __forceinline__ void wait_for_previous() { emulated::wait_for_previous(); }
